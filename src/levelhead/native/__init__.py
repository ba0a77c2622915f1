"""Code in C++ for what takes most of the time with small networks; absent if installed without a compiler."""

import ctypes
import weakref
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import numpy.typing as npt

from levelhead.native.plan import LAYOUT, Acting, Plan, Reading, Returns

try:
    from levelhead import _stepping
except ImportError:  # not built, mostly for want of Python's headers
    _stepping = None

INSTRUCTION_SETS = ("portable", "avx2", "avx512")
_limit = len(INSTRUCTION_SETS) - 1


@cache
def _library() -> ctypes.CDLL | None:
    spec = find_spec("levelhead._native")
    if spec is None or spec.origin is None:
        return None
    library = ctypes.CDLL(spec.origin)
    library.levelhead_layout.restype = ctypes.c_int64
    if library.levelhead_layout() != LAYOUT:
        return None
    library.levelhead_new_actor.restype = ctypes.c_void_p
    library.levelhead_delete_actor.argtypes = (ctypes.c_void_p,)
    library.levelhead_act.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    places = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    library.levelhead_features.argtypes = (ctypes.POINTER(Reading), *places, ctypes.c_int)
    return library


def available() -> bool:
    """Whether the code was built, and takes plans as they are laid out here."""
    return _library() is not None


def best_instruction_set() -> str:
    """The widest one of `INSTRUCTION_SETS` that this machine has, and may be used."""
    library = _library()
    return INSTRUCTION_SETS[0 if library is None else min(library.levelhead_best_isa(), _limit)]


def limit(instruction_set: str) -> None:
    """Has no wider one used from now on: processes that train together must round alike."""
    global _limit
    _limit = INSTRUCTION_SETS.index(instruction_set)


def run_epochs(plan: Plan) -> None:
    """All minibatches of a plan, which says where everything is; other threads run meanwhile.

    Raises:
        RuntimeError: the code was not built.
    """
    _built().levelhead_epochs(ctypes.byref(plan), _number())


def features(plan: Reading, observation: int, rows: int, answers: int) -> None:
    """What layers answer to so many rows, from one address to another, `[rows, outputs]` of float32.

    Raises:
        RuntimeError: the code was not built.
    """
    _built().levelhead_features(ctypes.byref(plan), observation, rows, answers, _number())


def estimate(plan: Returns) -> None:
    """Generalised advantage estimation over the rollout that a plan describes.

    Raises:
        RuntimeError: the code was not built.
    """
    _built().levelhead_gae(ctypes.byref(plan))


class Actor:
    """An actor network with the parameters that it has now.

    Args:
        plan: says where they are.

    Raises:
        RuntimeError: the code was not built.
    """

    def __init__(self, plan: Acting) -> None:
        library = _built()
        self._address = library.levelhead_new_actor(ctypes.byref(plan), _number())
        self.act = partial(library.levelhead_act, self._address)
        """Called with a step, counted from 0, and the address of what is legal then; None where everything is."""
        weakref.finalize(self, library.levelhead_delete_actor, self._address)

    def stretch(
        self, t: int, step: Callable[[Any], Any], actions: Sequence[npt.NDArray[Any]], rows: Sequence[npt.NDArray[Any]]
    ) -> tuple[int, Any]:
        """Acts and has environments step, from step t on, for as long as that only takes writing down their answers.

        Args:
            t: counted from 0.
            step: takes a step's actions, and answers `(observation, reward, terminated, truncated, infos)`.
            actions: of each step, where this actor leaves them.
            rows: arrays that answers are written to, in their order, `[T, N]`; of observations, `[T + 1, N, ...]`, one
                row later.

        Returns:
            The first step whose answer is something else: an episode ended, there are infos, or these are other
            arrays; and that answer. After the last step T, None.

        Raises:
            RuntimeError: the code was not built.
            Exception: what `step` raises.
        """
        if _stepping is None:
            raise RuntimeError("levelhead's native stepping loop was not built")
        return _stepping.stretch(_address_of_act(), self._address, actions, step, rows, t)


@cache
def _address_of_act() -> int | None:
    return ctypes.cast(_built().levelhead_act, ctypes.c_void_p).value


def has_loop() -> bool:
    """Whether `Actor.stretch` was built, which takes Python's headers."""
    return _stepping is not None


def _number() -> int:
    """Of the instruction set that is used, as dispatch.cpp counts them."""
    return INSTRUCTION_SETS.index(best_instruction_set())


def _built() -> ctypes.CDLL:
    library = _library()
    if library is None:
        raise RuntimeError("levelhead's native code was not built")
    return library
