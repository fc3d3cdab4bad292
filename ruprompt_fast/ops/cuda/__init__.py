"""The operators on CUDA devices: the only callers of the Triton kernels.

Modules that import kernels are imported when a call needs them: Triton may not be installed.
"""
