"""Noise that is correlated over time."""

import torch
from torch import Tensor


def colored_noise(shape: tuple[int, ...], color: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise `[T, ...]`, float32, whose power falls with frequency as `1 / f^color`: 0 white, 1 pink, 2 red.

    Every number is standard normal by itself; columns are independent, steps of a column are not.

    White noise of 2T steps is weighed in the frequency domain by `a_k = max(k, 1)^(-color / 2)`, divided by the root
    mean square of `a` over all 2T frequencies (Parseval), so that the variance is 1 at every step. Half of the outcome
    is dropped: it is periodic, and would tie the last steps to the first. Frequency zero, where the law diverges,
    weighs as much as the lowest one. Were it left out, as in noise with mean zero, every push in one direction would
    be taken back before the end.

    Args:
        shape: time first.
        color: the exponent.
        generator: decides all.

    Source: Timmer and Koenig 1995, "On generating power law noise"; as exploration noise Eberhard et al. 2023, "Pink
    noise is all you need"; with PPO Hollenstein et al. 2024, "Colored noise in PPO", where 0.5 did best.
    """
    if color == 0:
        return torch.randn(shape, generator=generator, device=generator.device)
    steps, *rest = shape
    white = torch.randn(2 * steps, *rest, generator=generator, device=generator.device)
    frequency = torch.arange(steps + 1, dtype=torch.float64, device=generator.device).clamp_(min=1)
    amplitude = frequency.pow(-0.5 * color)
    # Every frequency but the first and the last stands for itself and its negative.
    power = amplitude.square()
    amplitude /= ((2 * power.sum() - power[0] - power[-1]) / (2 * steps)).sqrt()
    weight = amplitude.to(white.dtype).reshape(-1, *(1 for _ in rest))
    return torch.fft.irfft(torch.fft.rfft(white, dim=0) * weight, n=2 * steps, dim=0)[:steps]
