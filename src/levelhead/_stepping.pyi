from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

def stretch(
    act: int | None,
    actor: int,
    actions: Sequence[npt.NDArray[Any]],
    step: Callable[[Any], Any],
    rows: Sequence[npt.NDArray[Any]],
    t: int,
    /,
) -> tuple[int, Any]: ...
