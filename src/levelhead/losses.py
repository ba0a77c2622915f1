"""The losses of the policy and the diagnostics of an update, as pure functions of per-sample tensors `[B]`."""

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 80.0
"""Above it, float32 would soon hold infinity, whose product with an advantage or a weight of 0 is not a number."""


def log_ratio(new: Tensor, old: Tensor) -> Tensor:
    """How much likelier actions have become, from their log-probabilities; at its largest a constant."""
    difference = new - old
    return torch.where(difference > LARGEST_LOG_RATIO, LARGEST_LOG_RATIO, difference)


def clip_surrogate(ratio: Tensor, advantage: Tensor, clip_range: float | Tensor) -> Tensor:
    """PPO's clipped surrogate, to be maximised: `min(r A, clip(r, 1 - eps, 1 + eps) A)`, unreduced.

    Source: Schulman et al. 2017, "Proximal policy optimization algorithms", equation 7.
    """
    with torch.no_grad():
        width = torch.as_tensor(clip_range, dtype=ratio.dtype, device=ratio.device)
        clipped = ratio.clamp(1 - width, 1 + width)
        smaller = clipped * advantage < ratio * advantage
    # Where the clipped term is the smaller one, it stands at its bound, a constant.
    return torch.where(smaller, clipped, ratio) * advantage


def dual_clip(surrogate: Tensor, advantage: Tensor, bound: float) -> Tensor:
    """A surrogate, to be maximised, that falls no lower than `bound * A` where the advantage is negative; unreduced.

    Source: Ye et al. 2020, "Mastering complex control in MOBA games with deep reinforcement learning".
    """
    return torch.where(advantage < 0, torch.maximum(surrogate, bound * advantage), surrogate)


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Schulman's low-variance estimate of KL(old || new) from samples of old: `r - 1 - log r`, unreduced.

    Source: Schulman 2020, "Approximating KL divergence" (k3). Not negative for any sample.
    """
    return log_ratio.expm1() - log_ratio


def clip_fraction(ratio: Tensor, clip_range: float | Tensor) -> Tensor:
    """1 where the ratio has left the clip range, else 0; unreduced."""
    return ((ratio - 1).abs() > clip_range).to(ratio.dtype)
