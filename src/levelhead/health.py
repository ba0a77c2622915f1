"""What must be finite: checked on the device without waiting for it, named on the host once it is known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from levelhead.distributed import everywhere, gathered_values


class Health:
    """The tensors of a rollout that must be finite in every valid row.

    Args:
        valid: `[T, N]` bool.
        tensors: `[T, N, ...]` by name, in the order in which one follows from another within a step.
        later: the same, of what row t learns of step t + 1.
    """

    def __init__(self, valid: Tensor, tensors: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> None:
        self._bad_rows = {name: _bad_rows(x, valid) for name, x in {**tensors, **later}.items()}
        self._later = later.keys()
        self.flags = {name: rows.any() for name, rows in self._bad_rows.items()}
        """0-d bool by name: whether something was not finite. More may be added, where no row is to blame."""

    @property
    def ok(self) -> Tensor:
        """0-d bool: whether all was finite, on all ranks."""
        return everywhere(~torch.stack(tuple(self.flags.values())).any())

    def diagnose(self, when: str, suspects: Sequence[int]) -> str:
        """Names what broke, where, and on which rank; all ranks must ask. There is something that broke.

        Args:
            when: it was.
            suspects: ranks on which a loss or a gradient was not finite before it was summed.
        """
        found = gathered_values((self._broken_row(), self._broken_flag()))
        for i, (row, _) in enumerate(found):
            if row is not None:
                return f"{row}, {when} on rank {i}"
        first = next(iter(suspects), next((i for i, (_, flag) in enumerate(found) if flag is not None), 0))
        return f"{found[first][1]}, {when} on rank {first}"

    def _broken_flag(self) -> str | None:
        broken = [name for name, flag in self.flags.items() if bool(flag)]
        return f"non-finite {broken[0]}" if broken else None

    def _broken_row(self) -> str | None:
        """The tensor that broke first here, by step and then in the order given, and where; waits for the device."""
        broken = [name for name, flag in self.flags.items() if bool(flag)]
        first: tuple[int, str] | None = None
        for name in broken:
            if name in self._bad_rows:
                step, environment = (int(i) for i in self._bad_rows[name].nonzero()[0])
                happened = step + (name in self._later)
                if first is None or happened < first[0]:
                    first = happened, f"non-finite {name} of environment {environment} at step {step} of the rollout"
        return None if first is None else first[1]


def _bad_rows(x: Tensor, valid: Tensor) -> Tensor:
    return ~x.isfinite().reshape(*valid.shape, -1).all(-1) & valid
