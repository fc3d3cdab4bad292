"""What jsonargparse says of a wrong value, in words of a configuration."""

from __future__ import annotations

import re

from ruprompt_fast.errors import shown
from ruprompt_fast.runs.data.rows import nearest

_WRONG_VALUE = re.compile(r'Parser key "(?P<key>[^"]+)": (?P<what>.*?)\.? (Got|Given) value: (?P<value>.*)')
_TYPE = re.compile(r"Expected an? (<class '(?P<name>[\w.]+)'>|typing\.Literal\[(?P<options>[^\]]*)\])")
_OPTION = re.compile(r"'([^']*)'")

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list, such as [a, b]",
    "collections.abc.Mapping": "keys and values, such as {a: b}",
    "dict": "keys and values, such as {a: b}",
}


def in_our_words(message: str) -> str:
    """A message of jsonargparse on one line; that of a wrong value says what is expected and what was found."""
    found = _WRONG_VALUE.fullmatch(message)
    expected = [] if found is None else list(_TYPE.finditer(found["what"]))
    if found is None or not expected:
        return message
    # In a union None means the default, and may be written.
    wanted = dict.fromkeys("null" if one["name"] == "NoneType" else _wanted(one) for one in expected)
    options = [option for one in expected for option in _OPTION.findall(one["options"] or "")]
    value = found["value"].strip("'\"")
    return f"{found['key']} must be {' or '.join(wanted)}; found {shown(value)}.{nearest(value, options)}".rstrip(".")


def _wanted(found: re.Match[str]) -> str:
    if found["options"] is not None:
        return f"one of {', '.join(_OPTION.findall(found['options']))}"
    return _WORDS.get(found["name"], found["name"])
