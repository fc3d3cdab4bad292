"""The provider around any module that makes rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ruprompt_fast.errors import PromptInitError, PromptMismatchError
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider


class ModulePromptProvider(BasePromptProvider):
    """Any module that returns [rows, width] when called without arguments.

    Args:
        module: the module; it must be complete, nothing is initialized here.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._shape: tuple[int, int] | None = None

    def initialize(
        self, prompt_length: int, embedding_dim: int, embedding: nn.Module, init_tokens: dict[int, int]
    ) -> None:
        """Check what the module returns.

        Raises:
            PromptMismatchError: it is not [prompt_length, embedding_dim].
            PromptInitError: the template wants rows to be initialized from a text.
        """
        if init_tokens:
            raise PromptInitError(
                f"{type(self.module).__name__} makes its own rows and cannot initialize them from the template's "
                "<P>text</P>; write <P*N>, or use TensorPromptProvider."
            )
        self._shape = (prompt_length, embedding_dim)
        try:
            with torch.no_grad():
                self.forward()
        except PromptMismatchError:
            self._shape = None
            raise

    def forward(self) -> Tensor:
        """The module's rows, [rows, width].

        Raises:
            PromptMismatchError: the module returned something else.
        """
        if self._shape is None:
            raise self._uninitialized()
        rows = self.module()
        if not isinstance(rows, Tensor) or not rows.is_floating_point() or rows.shape != self._shape:
            found = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise PromptMismatchError(
                f"{type(self.module).__name__} must return floating-point rows {list(self._shape)}; found {found}."
            )
        return rows

    @property
    def is_initialized(self) -> bool:
        """Whether the module's rows were checked."""
        return self._shape is not None


def as_provider(module: nn.Module) -> BasePromptProvider:
    """The module itself if it is a provider, else a provider around it.

    Raises:
        PromptInitError: it is not a module.
    """
    if isinstance(module, BasePromptProvider):
        return module
    if not isinstance(module, nn.Module):
        raise PromptInitError(f"a provider must be a torch module; found {type(module).__name__}.")
    return ModulePromptProvider(module)
