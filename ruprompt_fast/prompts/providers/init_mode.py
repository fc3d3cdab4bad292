"""The names of the ways to make first values of rows, for those who only name one."""

from __future__ import annotations

from typing import Literal

InitMode = Literal["vocab", "random", "frequent", "text", "labels"]
