"""A rollout as policy and critic see it by now, who aren't those that played and valued it."""

from dataclasses import replace

import torch
from torch import Tensor

from levelhead.rollout import Rollout, unchunked
from levelhead.values import ValueHead


def next_value(head: ValueHead, rollout: Rollout, z: Tensor, had_scale: Tensor) -> Tensor:
    """Values of the successors as the critic would give them after its statistics have moved, `[T, N]`.

    Args:
        head: of the critic.
        rollout: with the values from before.
        z: these on the axis of that time.
        had_scale: `[K]` bool, whether an output had a scale then, so that a head that preserves outputs did.
    """
    if not head.predicts_normalized:
        return rollout.next_value
    preserved = (had_scale if rollout.task is None else had_scale[rollout.task]) & head.preserves
    return torch.where(preserved, rollout.next_value, head.denormalize(z, task=rollout.task))


def revalued(head: ValueHead, rollout: Rollout, log_prob: Tensor, z: Tensor) -> Rollout:
    """The rollout with today's values, and how much more likely its actions have become.

    What follows a row that another one doesn't continue is left as it was valued when it was collected.

    Args:
        head: of the critic.
        rollout: as it was played.
        log_prob, z: log-probabilities and normalised values of now, `[S, C]`.
    """
    log_prob, z = (unchunked(x, rollout.value.shape[1]) for x in (log_prob, z))
    value = head.denormalize(z, task=rollout.task)
    goes_on = ~(rollout.terminated | rollout.truncated) & rollout.valid
    goes_on[:-1] &= rollout.valid[1:]
    goes_on[-1] = False
    following = torch.where(goes_on, value.roll(-1, 0), rollout.next_value)
    ratio = (log_prob - rollout.log_prob).exp()
    if rollout.ratio is not None:  # which had moved before
        ratio = ratio * rollout.ratio
    return replace(rollout, value=value, next_value=following, ratio=ratio)


def weighted(rollout: Rollout, advantage: Tensor) -> Tensor:
    """Advantages as they enter the loss of a policy that isn't the one that acted: by clipped importance weights."""
    return advantage if rollout.ratio is None else advantage * rollout.ratio.clamp(max=1.0)
