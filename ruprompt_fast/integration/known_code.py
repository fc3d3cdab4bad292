"""Whether a function of another library is the code that was read when something was built on what it does."""

from __future__ import annotations

import ast
import hashlib
import inspect
import textwrap
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

_UNREADABLE = ""
# What does not change what a function computes, or is a message.
_IGNORED_FIELDS = {"annotation", "returns", "type_comment", "type_params", "kind", "ctx"}


@lru_cache(maxsize=256)
def code_digest(function: Callable[..., Any]) -> str:
    """A digest of a function's code: the same wherever it is written the same.

    The signature and every statement count; comments, docstrings, annotations, layout and the texts of errors do not.
    It is the same in every version of Python. Of a function that is decorated, or whose source is not there, it is
    empty, and equals that of no function.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError, SyntaxError):
        return _UNREADABLE
    if not isinstance(tree, ast.FunctionDef) or tree.decorator_list:
        return _UNREADABLE
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:]
    return hashlib.sha256(" ".join(_words(tree)).encode()).hexdigest()[:16]


def _words(node: ast.AST) -> Iterator[str]:
    yield type(node).__name__
    if isinstance(node, ast.Raise):
        return
    for field, value in ast.iter_fields(node):
        # Versions differ in whether an empty field is there.
        if field in _IGNORED_FIELDS or value is None or value == []:
            continue
        yield field
        for part in value if isinstance(value, list) else [value]:
            yield from _words(part) if isinstance(part, ast.AST) else [repr(part)]
        yield "."
