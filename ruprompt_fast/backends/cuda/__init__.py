"""The CUDA backend."""

from ruprompt_fast.backends.cuda.backend import CudaBackend

__all__ = ["CudaBackend"]
