"""Code in C++ for what takes most of the time with small networks; absent if installed without a compiler."""

import ctypes
from functools import cache
from importlib.util import find_spec

from levelhead.native.plan import LAYOUT, Plan

INSTRUCTION_SETS = ("portable", "avx2", "avx512")


@cache
def _library() -> ctypes.CDLL | None:
    spec = find_spec("levelhead._native")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    library.levelhead_layout.restype = ctypes.c_int64
    return library if library.levelhead_layout() == LAYOUT else None


def available() -> bool:
    """Whether the code was built, and from these sources."""
    return _library() is not None


@cache
def best_instruction_set() -> str:
    """The widest one of `INSTRUCTION_SETS` that this machine has."""
    library = _library()
    return INSTRUCTION_SETS[0 if library is None else library.levelhead_best_isa()]


def run_epochs(plan: Plan) -> None:
    """All minibatches of a plan, which says where everything is; other threads run meanwhile.

    Raises:
        RuntimeError: the code was not built.
    """
    library = _library()
    if library is None:
        raise RuntimeError("levelhead's native code was not built")
    library.levelhead_epochs(ctypes.byref(plan), INSTRUCTION_SETS.index(best_instruction_set()))
