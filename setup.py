"""The compiled extension; everything else about the package is in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# One compiler for each processor; NPY_NUM_BUILD_JOBS sets another number.
ParallelCompile("NPY_NUM_BUILD_JOBS").install()

setup(
    ext_modules=[
        Pybind11Extension(
            "ruprompt_fast._C",
            sorted(glob("csrc/*/*.cc")),
            include_dirs=["csrc"],
            depends=sorted(glob("csrc/*/*.h")),
            cxx_std=17,
            extra_compile_args=["-O3", "-fopenmp", "-Wall", "-Wextra"],
            extra_link_args=["-fopenmp"],
        )
    ]
)
