"""The native library; pyproject.toml has everything else."""

from glob import glob

from setuptools import Extension, setup

# Loaded with ctypes, so it needs no headers but the compiler's own. Without a compiler it is left out, and everything
# runs in torch.
NATIVE = Extension(
    "levelhead._native",
    sources=sorted(glob("src/levelhead/native/*.cpp")),
    depends=sorted(glob("src/levelhead/native/*.h")),
    language="c++",
    # Nothing ever looks at traps and errno; NaN and infinity still behave.
    extra_compile_args=["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-fno-trapping-math", "-pthread"],
    extra_link_args=["-pthread"],
    optional=True,
)

setup(ext_modules=[NATIVE])
