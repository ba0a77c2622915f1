"""Whether a training is sound: what was not finite, how values are scaled, which hidden units tell nothing apart."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from levelhead.advantages import Measured
from levelhead.distributed import gathered_values, largest, total
from levelhead.layers import ACTIVATIONS
from levelhead.networks import Policy
from levelhead.numerics import explained, pick, zero_if_finite
from levelhead.rollout import Rollout
from levelhead.tree import Tree, by_path, tree_leaves, tree_map
from levelhead.values import ValueHead


@dataclass(frozen=True)
class Evidence:
    """What must be finite of a rollout, kept until it is known whether all of it was."""

    rollout: Rollout
    """In its valid rows."""
    advantage: Tensor
    target: Tensor

    @property
    def hidden(self) -> Tensor:
        """0-d bool: whether something was not finite that needs not show in advantages and targets, as values do, and
        observations in values: log-probabilities, and rewards that are clipped."""
        seen = torch.stack((self.rollout.log_prob, self.rollout.reward))
        return zero_if_finite(torch.where(self.rollout.valid, seen, 0.0), ()) != 0

    def diagnose(self, when: str, faults: Mapping[str, Tensor], suspects: Sequence[int]) -> str:
        """Names what broke, where, and on which rank; all ranks must ask. There is something that broke.

        Args:
            when: it was.
            faults: 0-d bool by name: what of learning was not finite.
            suspects: ranks on which a loss or a gradient was not finite before it was summed.
        """
        found = gathered_values((self._broken_row(), self._broken_whole(faults)))
        for i, (row, _) in enumerate(found):
            if row is not None:
                return f"{row}, {when} on rank {i}"
        first = next(iter(suspects), next((i for i, (_, whole) in enumerate(found) if whole is not None), 0))
        return f"{found[first][1]}, {when} on rank {first}"

    def _broken_row(self) -> str | None:
        """The tensor that broke first here, by step and then as one follows from another, and where."""
        rollout = self.rollout
        floats = {path: x for path, x in by_path(rollout.observation).items() if x.is_floating_point()}
        observations = {f"observation {path}".rstrip(): x for path, x in floats.items()}
        now = {"log-probability": rollout.log_prob, "reward": rollout.reward, "value": rollout.value}
        # Nothing follows a real end, so no value needs to.
        later = {"value of a successor": torch.where(rollout.terminated, 0.0, rollout.next_value)}
        first: tuple[int, str] | None = None
        for name, x in {**observations, **now, **later}.items():
            broken = (zero_if_finite(x, rollout.valid.shape) != 0) & rollout.valid
            for step, environment in broken.nonzero()[:1].tolist():
                happened = step + (name in later)
                if first is None or happened < first[0]:
                    first = happened, f"non-finite {name} of environment {environment} at step {step} of the rollout"
        return None if first is None else first[1]

    def _broken_whole(self, faults: Mapping[str, Tensor]) -> str | None:
        """What broke first where no row is to blame."""
        estimates = {"advantage": self.advantage, "target": self.target}
        broken = {name: zero_if_finite(x[self.rollout.valid], ()) != 0 for name, x in estimates.items()}
        return next((f"non-finite {name}" for name, flag in {**broken, **faults}.items() if bool(flag)), None)


def preservation_error(head: ValueHead, rollout: Rollout, had_scale: Tensor) -> Tensor:
    """How far outputs moved with their statistics, at most, in stds, 0-d; one's first scale has nothing to preserve.

    Args:
        head: after its statistics have moved.
        rollout: with the values from before.
        had_scale: `[K]` bool, whether an output had a scale then.
    """
    task, std = None, head.std
    if rollout.task is not None:
        task = rollout.task[-1]
        std, had_scale = std[task], had_scale[task]
    error = (pick(head(rollout.last_features), task) - rollout.value[-1]).abs() / std
    worst = largest(torch.where(had_scale, error, -1.0).max())
    return torch.where(worst >= 0, worst, torch.nan)


def value_metrics(
    head: ValueHead, tasks: Sequence[str], of: Measured, masks: Sequence[Tensor], y: Tensor
) -> dict[str, Tensor]:
    """Where the statistics of each task are now, and what moved them, 0-d by name.

    Args:
        head: whose statistics.
        tasks: their names; empty where there is one alone.
        of: moments of the rollout's estimates.
        masks: per task, bool: its valid samples.
        y: targets on the normalised axis, of the masks' shape.
    """
    none = of.target.weight == 0
    metrics = {
        "value/mean": head.mean,
        "value/std": head.std,
        "train/explained_variance": explained(of.target, of.residual),
        "value/target_mean": of.target.mean.masked_fill(none, torch.nan),
        "value/target_std": of.target.var.sqrt().masked_fill(none, torch.nan),
        "advantage/mean": of.advantage.mean.masked_fill(none, torch.nan),
        "advantage/std": of.advantage.var.sqrt().masked_fill(none, torch.nan),
    }
    if math.isfinite(head.limit):
        outside = torch.stack([(mask & (y.abs() > head.limit)).sum() for mask in masks])
        metrics["value/outside_support"] = total(outside) / of.target.weight
    names = [f"/{task}" for task in tasks] or [""]
    return {f"{name}{task}": x for name, by in metrics.items() for task, x in zip(names, by.unbind(), strict=True)}


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
