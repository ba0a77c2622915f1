"""What must be finite: checked on the device without waiting for it, named on the host once it is known."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from levelhead.distributed import gathered_values, largest
from levelhead.layers import ACTIVATIONS
from levelhead.networks import Policy
from levelhead.numerics import nothing
from levelhead.tree import Tree, tree_leaves, tree_map


class Health:
    """The tensors of a rollout that must be finite in every valid row.

    Args:
        valid: `[T, N]` bool.
        tensors: `[T, N, ...]` by name, in the order in which one follows from another within a step.
        later: the same, of what row t learns of step t + 1.
    """

    def __init__(self, valid: Tensor, tensors: Mapping[str, Tensor], later: Mapping[str, Tensor]) -> None:
        every = {**tensors, **later}
        # All that have one number for each row are read at once.
        rows = [x if x.shape == valid.shape else nothing(x, valid.shape) for x in every.values()]
        bad = (nothing(torch.stack(rows), (len(rows), *valid.shape)) != 0) & valid
        self._bad_rows = dict(zip(every, bad.unbind(), strict=True))
        self._later = later.keys()
        self.flags = dict(zip(every, bad.flatten(1).any(1).unbind(), strict=True))
        """0-d bool by name: whether something was not finite. More may be added, where no row is to blame."""

    @property
    def ok(self) -> Tensor:
        """0-d bool: whether all was finite, on all ranks."""
        return ~largest(torch.stack(tuple(self.flags.values())).any())

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


@torch.no_grad()
def dead_units(policy: Policy, observation: Tree, rows: int = 128) -> Tensor:
    """Share of the hidden units that answer the same to every one of some observations, 0-d; NaN where there are no
    such units, or the observations are all the same.

    Units are what activation functions answer: numbers, or in convolutions channels. A ReLU that is never positive is
    such a unit, and so is a tanh that is always saturated. Layers with memory are left out, and count as at the
    beginning of an episode for those above.

    Args:
        policy: its torsos are asked.
        observation: `[T, N, ...]`; so many rows of it are looked at, spread evenly.
        rows: at most.
    """
    flat = tree_map(lambda x: x.flatten(0, 1), observation)
    count = len(tree_leaves(flat)[0])
    chosen = tree_map(lambda x: x[:: -(-count // rows)], policy.reader(flat))
    spreads: list[Tensor] = []

    def look(module: nn.Module, given: object, answer: Tensor) -> None:  # noqa: ARG001  # a hook's arguments
        channels = answer.transpose(0, 1).flatten(1)
        spreads.append(channels.amax(1) - channels.amin(1))

    activations = [m for m in policy.network.modules() if isinstance(m, tuple(ACTIVATIONS.values()))]
    hooks = [module.register_forward_hook(look) for module in activations]
    try:
        n = len(tree_leaves(chosen)[0])
        reset = torch.ones(1, n, dtype=torch.bool, device=policy.device)
        policy.features(chosen, policy.network.initial_state(n), reset)
    finally:
        for hook in hooks:
            hook.remove()
    varied = torch.stack([(x != x[:1]).any() for x in tree_leaves(chosen)]).any()
    if not spreads:
        return torch.full((), torch.nan, device=policy.device)
    return torch.where(varied, (torch.cat(spreads) == 0).double().mean(), torch.nan)
