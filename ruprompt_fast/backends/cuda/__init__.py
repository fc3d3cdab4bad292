"""The CUDA backend."""

from ruprompt_fast.backends.cuda.backend import CudaBackend
from ruprompt_fast.backends.cuda.options import CudaOptions

__all__ = ["CudaBackend", "CudaOptions"]
