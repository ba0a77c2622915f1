"""The native code; pyproject.toml has everything else."""

from glob import glob

from setuptools import Extension, setup

STEPPING = "src/levelhead/native/stepping.cpp"

# Loaded with ctypes, so it needs no headers but the compiler's own. Without a compiler it is left out, and everything
# runs in torch.
NATIVE = Extension(
    "levelhead._native",
    sources=sorted({*glob("src/levelhead/native/*.cpp")} - {STEPPING}),
    depends=sorted(glob("src/levelhead/native/*.h")),
    language="c++",
    # Nothing ever looks at traps and errno; NaN and infinity still behave.
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)

# A module of Python's, as it calls environments. It takes Python's headers; without it the loop in Python is used.
LOOP = Extension(
    "levelhead._stepping",
    sources=[STEPPING],
    language="c++",
    define_macros=[("Py_LIMITED_API", "0x030B0000")],
    py_limited_api=True,
    extra_compile_args=["-std=c++17", "-O3", "-g0"],
    optional=True,
)

setup(ext_modules=[NATIVE, LOOP])
