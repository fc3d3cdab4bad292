"""Messages of errors stay short and printable, whatever they quote."""

from __future__ import annotations

import pytest

from ruprompt_fast.errors import MAX_MESSAGE_CHARS, PromptFileError, RupromptError, shown


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def doubled(levels: int) -> object:
    value: object = "x"
    for _ in range(levels):
        value = [value, value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        b"x" * 1_000_000,
        10**6_000,
        -(10**6_000),
        [0] * 1_000_000,
        {"key" * 999: [1] * 999},
        {1: "a", "b": 2},
        doubled(100),
        _Unprintable(),
        "\ud800",
    ],
    ids=lambda value: type(value).__name__,
)
def test_any_value_is_shown_shortly(value: object) -> None:
    assert len(shown(value)) <= 200
    assert len(shown(value, 50)) <= 50
    shown(value).encode()


def test_short_values_are_shown_whole() -> None:
    for value in ("text", 3, None, True, 1.5, [1, 2], {"a": ("b", 2)}, b"x"):
        assert shown(value) == repr(value)


def test_messages_are_cut_in_the_middle() -> None:
    message = str(PromptFileError("begin" + "x" * 1_000_000 + "end"))
    assert len(message) <= MAX_MESSAGE_CHARS
    assert message.startswith("begin")
    assert message.endswith("end")
    assert "1000008 characters" in message


def test_messages_are_text() -> None:
    assert str(RupromptError("a \udcff path")) == "a \\udcff path"
