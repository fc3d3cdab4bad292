"""Templates: where the virtual tokens, the literal text and the fields of a prompt are.

Two notations describe the same layout. A *template* is what people write::

    <P*60>{text}<P*20>        60 virtual tokens, the field, 20 virtual tokens
    <P>Question:</P>{text}    as many virtual tokens as "Question:" has tokens, initialized from those
    <P*60><bos>{text}         virtual tokens, the tokenizer's beginning-of-text token, the field

Every virtual token has a row of the prompt's numbers.

``<bos>``, ``<eos>`` and the text of any special token of the tokenizer are that token. ``<|leading|>`` and
``<|trailing|>`` say where the tokens are that the tokenizer itself puts around every text, if not around all of it.

A *compiled template* has one marker per virtual token, ``<|P|>`` or ``<|[key]P|>``, and is what files store and what
the text form of a prompt is made from. It belongs to one tokenizer, whose tokens' own texts appear in it, and is taken
at its word: where it holds no ``<|leading|>``, the tokenizer adds its tokens at the beginning, as in ruPrompts. Both
notations follow ``str.format``: ``{{`` and ``}}`` are literal braces.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from string import Formatter

from ruprompt_fast.errors import TemplateError, shown
from ruprompt_fast.prompts.format.layout import (
    Field,
    Layout,
    Part,
    Rows,
    RowsFromText,
    Special,
    TemplatePart,
    Text,
    join_neighbours,
)
from ruprompt_fast.prompts.format.texts import is_text
from ruprompt_fast.prompts.limits import MAX_BRACES, MAX_FIELDS, MAX_KEY_CHARS, MAX_ROWS, MAX_TEMPLATE_CHARS

PROMPT_TOKEN = "<|P|>"
"""The marker of one virtual token in a compiled template."""

PROMPT_TOKEN_FOR_KEY = "<|[{key}]P|>"
"""The marker of one virtual token of the prompt that is served under ``key``."""

PROMPT_TOKEN_SHORT = "<P>"
"""One virtual token in a template."""

BEGIN, END = "<bos>", "<eos>"
"""The tokenizer's beginning-of-text and end-of-text token in a template."""

LEADING, TRAILING = "<|leading|>", "<|trailing|>"
"""The special tokens that the tokenizer puts in front of every text, and after it."""

# A key holds neither the beginning nor the end of a marker, so that every marker reads in one way.
_KEY = rf"(?:(?!<\|\[|P\|>).){{0,{MAX_KEY_CHARS}}}?"
_MARKER = rf"<\|(?:\[(?P<key>{_KEY})\])?P\|>"
_ADDED = "|".join(map(re.escape, (LEADING, TRAILING)))
MARKER_PATTERN = re.compile(_MARKER, re.DOTALL)
_COMPILED_PATTERN = re.compile(rf"{_MARKER}|(?P<special>{_ADDED})", re.DOTALL)
_TEMPLATE_PATTERN = re.compile(
    rf"<P>|</P>|<P\*(?P<count>[^<>]*)>|{_MARKER}|(?P<special>{_ADDED}|{BEGIN}|{END})", re.DOTALL
)


def split_fields(template: str) -> list[Text | Field]:
    """Split a template at its fields, by the rules of ``str.format``.

    Raises:
        TemplateError: unbalanced braces, or a field that is positional, has an attribute, a conversion or a format;
            a template that is too long, has too many fields, or is no text.
    """
    check_template(template)
    parts: list[Text | Field] = []
    num_fields = 0
    try:
        for text, name, spec, conversion in Formatter().parse(template):
            if text:
                parts.append(Text(text))
            if name is not None:
                num_fields += 1
                if num_fields > MAX_FIELDS:
                    raise TemplateError(f"the template {shown(template)} has more than {MAX_FIELDS} fields.")
                parts.append(Field(_checked_name(name, spec, conversion, template)))
    except ValueError as error:
        if isinstance(error, TemplateError):
            raise
        raise TemplateError(
            f"cannot read the template {shown(template)}: {error}. Write a literal brace twice, as {{{{ or }}}}."
        ) from error
    return parts


def check_template(template: str) -> None:
    """Check that a template is a text of a reasonable length.

    Raises:
        TemplateError: it is not.
    """
    if not isinstance(template, str):
        raise TemplateError(f"a template must be a string; found {type(template).__name__}.")
    if len(template) > MAX_TEMPLATE_CHARS:
        raise TemplateError(f"a template has at most {MAX_TEMPLATE_CHARS} characters; found {len(template)}.")
    if template.count("{") > MAX_BRACES:
        raise TemplateError(f"a template has at most {MAX_BRACES} braces; found {template.count('{')}.")
    if not is_text(template):
        raise TemplateError(f"a template must be text; {shown(template)} holds half a character, a lone surrogate.")


def parse_template(template: str) -> tuple[TemplatePart, ...]:
    """Read a template as people write it.

    Raises:
        TemplateError: see :func:`split_fields`; also a bad repeat count, an empty ``<P></P>``, a field or special token
            between ``<P>`` and ``</P>``, a keyed marker, or ``<|leading|>`` or ``<|trailing|>`` twice or among fields.
    """
    parts: list[TemplatePart] = []
    is_open = False  # the last thing among the rows was a <P> without its </P>
    for piece in join_neighbours(split_fields(template)):
        if isinstance(piece, Text):
            is_open = _parse_text(piece.text, parts, is_open, template)
        else:
            parts.append(piece)
    _check_rows(sum(part.count for part in parts if isinstance(part, Rows)))
    _check_ends(parts, template)
    return tuple(parts)


def parse_compiled(compiled: str) -> tuple[Layout, str | None]:
    """Read a compiled template: its layout and the key that its markers carry, if any.

    Raises:
        TemplateError: see :func:`split_fields`; also markers of more than one kind, or ``<|leading|>`` or
            ``<|trailing|>`` twice or among fields.
    """
    parts: list[Part] = []
    markers = {}
    num_rows = 0
    for piece in join_neighbours(split_fields(compiled)):
        if not isinstance(piece, Text):
            parts.append(piece)
            continue
        end = 0
        for match in _COMPILED_PATTERN.finditer(piece.text):
            parts.append(Text(piece.text[end : match.start()]))
            end = match.end()
            if match["special"] is not None:
                parts.append(Special(match["special"]))
                continue
            num_rows += 1
            _check_rows(num_rows)
            parts.append(Rows(1))
            markers[match.group()] = match["key"]
        parts.append(Text(piece.text[end:]))
    if len(markers) > 1:
        raise TemplateError(
            f"a compiled template has one marker, repeated; found {shown(sorted(markers))} in {shown(compiled)}. "
            "Use one template for each prompt."
        )
    _check_ends(parts, compiled)
    return Layout(parts), next(iter(markers.values()), None)


def compile_parts(parts: Sequence[TemplatePart], tokenize: Callable[[str], list[int]]) -> tuple[Layout, dict[int, int]]:
    """Turn virtual tokens that are made from texts into plain ones.

    Args:
        parts: what :func:`parse_template` returned.
        tokenize: gives the ids of a text, without special tokens.

    Returns:
        The layout, and the token id that each such row is to be initialized from, by the row's index.
    """
    compiled: list[Part] = []
    init_tokens: dict[int, int] = {}
    length = 0
    for part in parts:
        if isinstance(part, RowsFromText):
            ids = tokenize(part.text)
            if not ids:
                raise TemplateError(
                    f"the text {shown(part.text)} between <P> and </P> has no tokens in this tokenizer."
                )
            init_tokens.update(enumerate(ids, start=length))
            part = Rows(len(ids))
        if isinstance(part, Rows):
            length += part.count
            _check_rows(length)
        compiled.append(part)
    return Layout(compiled), init_tokens


def marker_for_key(key: str | None) -> str:
    """The marker of a prompt that is served under ``key``, or of one that is served alone.

    Raises:
        TemplateError: the key is no text, is too long, or holds a part of a marker.
    """
    if key is None:
        return PROMPT_TOKEN
    marker = PROMPT_TOKEN_FOR_KEY.replace("{key}", key) if isinstance(key, str) else ""
    match = MARKER_PATTERN.fullmatch(marker)
    if match is None or match["key"] != key or not is_text(marker):
        raise TemplateError(
            f"a prompt's key must be a text without '<|[' and 'P|>', of at most {MAX_KEY_CHARS} characters; found "
            f"{shown(key)}."
        )
    return marker


def is_marker(token: str) -> bool:
    """Whether a token is the marker of some prompt, ``<|P|>`` or ``<|[key]P|>``."""
    return MARKER_PATTERN.fullmatch(token) is not None


def _check_rows(count: int) -> None:
    if count > MAX_ROWS:
        raise TemplateError(f"a prompt has at most {MAX_ROWS} rows; this template has more than {count - 1}.")


def _check_ends(parts: Sequence[TemplatePart], template: str) -> None:
    """Check that what a tokenizer puts around a text is around the fields, once.

    Raises:
        TemplateError: it does not.
    """
    fields = [index for index, part in enumerate(parts) if isinstance(part, Field)]
    for name in (LEADING, TRAILING):
        places = [index for index, part in enumerate(parts) if part == Special(name)]
        is_outside = all(
            (place < min(fields)) if name == LEADING else (place > max(fields)) for place in places if fields
        )
        if len(places) > 1 or not is_outside:
            side = "before the first" if name == LEADING else "after the last"
            raise TemplateError(f"{name} appears once in a template, {side} field; found {shown(template)}.")


def _checked_name(name: str, spec: str | None, conversion: str | None, template: str) -> str:
    stripped = name.strip()
    if not stripped or stripped.isdigit():
        problem = "has a field without a name"
    elif re.search(r"[.\[\]]", stripped):
        problem = f"takes an attribute or an item of a field, {shown(name)}"
    elif spec or conversion:
        problem = f"formats the field {shown(name)}"
    else:
        return stripped
    raise TemplateError(f"the template {shown(template)} {problem}; only plain {{name}} fields are possible.")


def _parse_text(text: str, parts: list[TemplatePart], is_open: bool, template: str) -> bool:
    """Append the parts of one literal text; takes and returns whether a ``<P>`` is still without its ``</P>``."""
    opened_here = False
    end = 0
    for match in _TEMPLATE_PATTERN.finditer(text):
        before = text[end : match.start()]
        mark = match.group()
        if mark == "</P>":
            if not is_open:
                continue  # plain text, and part of the next piece of it
            if not opened_here or not before:
                problem = "nothing" if opened_here else "a field or a special token"
                raise TemplateError(
                    f"there is {problem} between <P> and </P> in the template {shown(template)}; "
                    "put literal text there, or write <P*N> for N rows."
                )
            parts[-1] = RowsFromText(before)
            is_open = opened_here = False
        else:
            if before:
                parts.append(Text(before))
            if match["special"] is not None:
                parts.append(Special(mark))
                opened_here = False
            else:
                parts.append(Rows(_row_count(match, template)))
                is_open = opened_here = mark == PROMPT_TOKEN_SHORT
        end = match.end()
    if text[end:]:
        parts.append(Text(text[end:]))
    return is_open


def _row_count(match: re.Match[str], template: str) -> int:
    if match["key"] is not None:
        raise TemplateError(
            f"the template {shown(template)} contains the marker {shown(match.group())}. "
            "Write <P> for a row; set_key() gives its marker a key."
        )
    count = match["count"]
    if count is None:
        return 1
    if not count.isascii() or not count.isdigit() or len(count) > len(str(MAX_ROWS)):
        raise TemplateError(
            f"{shown(match.group())} in the template {shown(template)} must be <P*N> with a number of rows N."
        )
    return int(count)
