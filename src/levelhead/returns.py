"""Advantages and value targets from rewards and values, all in raw reward units and time-major `[T, N]`."""

import torch
from torch import Tensor


def gae(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float | Tensor = 0.99,
    lam: float | Tensor = 0.95,
    valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation with time limits told apart from real ends.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t = delta_t + gamma lam (1 - terminated_t) (1 - truncated_t) A_{t+1},   target_t = A_t + V(s_t)

    `lam=1` gives Monte-Carlo returns, bootstrapped where the data is cut; `lam=0` one-step TD.

    Args:
        reward, value, next_value: `[T, N]` floats. `next_value` is the value of the *true* successor: where an episode
            was cut by a time limit, that of its final observation, never of the next episode's first.
        terminated, truncated: `[T, N]` bool.
        gamma: discount in [0, 1].
        lam: in [0, 1].
        valid: `[T, N]` bool; rows that hold no real transition get advantage 0 and their own value as target, and
            nothing flows through them.

    Returns:
        Advantages and targets, `[T, N]`.

    Raises:
        ValueError: the shapes differ; nothing broadcasts.

    Source: Schulman et al. 2016, "High-dimensional continuous control using generalized advantage estimation",
    equation 16; Pardo et al. 2018, "Time limits in reinforcement learning", for the truncation.
    """
    given = (reward, value, next_value, terminated, truncated) + (() if valid is None else (valid,))
    if reward.ndim != 2 or any(x.shape != reward.shape for x in given):
        raise ValueError(f"all arguments must be [T, N] of one shape, not {[tuple(x.shape) for x in given]}")
    going_on = ~terminated
    delta = reward + gamma * torch.where(going_on, next_value, 0.0) - value
    carry = gamma * lam * (going_on & ~truncated).to(reward.dtype)
    if valid is not None:
        delta = torch.where(valid, delta, 0.0)
        carry = torch.where(valid, carry, 0.0)
    advantage = _discounted_sum(delta, carry)
    return advantage, advantage + value


def _discounted_sum(x: Tensor, carry: Tensor) -> Tensor:
    """`y_t = x_t + carry_t y_{t+1}` along the first axis.

    By doubling: after k rounds each y_t holds 2^k terms, so T steps take log2(T) operations on whole tensors.
    """
    y, carry, span = x.clone(), carry.clone(), 1
    while span < len(x):
        # A carry of 0 ends an episode: what lies beyond stays there, even NaN.
        inflow = torch.where(carry[:-span] == 0, 0.0, carry[:-span] * y[span:])
        y = torch.cat((y[:-span] + inflow, y[-span:]))
        carry = torch.cat((carry[:-span] * carry[span:], carry[-span:]))
        span *= 2
    return y
