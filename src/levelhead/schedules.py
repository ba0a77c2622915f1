"""One schedule type for every coefficient: a value that moves from `start` to `end` as training progresses."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Shape = Literal["constant", "linear", "cosine", "exponential"]
SHAPES: tuple[Shape, ...] = get_args(Shape)


@dataclass(frozen=True)
class Schedule:
    """A coefficient over the course of training.

    Written `3e-4` (constant) or `SHAPE:START:END`, for example `linear:3e-4:0`.

    Args:
        start: value at progress 0.
        end: value at progress 1; equal to `start` where `shape` is constant.
        shape: `constant`, `linear`, `cosine` (half a cosine wave, flat at both ends) or `exponential`
            (the same factor per step; both ends must be positive).

    Raises:
        ValueError: an end is not finite, or the shape doesn't fit the ends.
    """

    start: float
    end: float
    shape: Shape = "linear"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.start) and math.isfinite(self.end)):
            raise ValueError(f"a schedule goes between finite numbers, not {self.start} and {self.end}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown schedule shape {self.shape!r}; known: {', '.join(SHAPES)}")
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(f"a constant schedule cannot go from {self.start} to {self.end}")
        if self.shape == "exponential" and min(self.start, self.end) <= 0:
            raise ValueError(f"an exponential schedule needs positive ends, not {self.start} and {self.end}")

    def __call__(self, progress: float) -> float:
        """Value at `progress`, the share of training done; clipped to [0, 1], so it never overshoots `end`."""
        p = min(max(progress, 0.0), 1.0)
        match self.shape:
            case "constant":
                return self.start
            case "linear":
                return self.start * (1 - p) + self.end * p
            case "cosine":
                return self.end + (self.start - self.end) * 0.5 * (1 + math.cos(math.pi * p))
            case "exponential":
                return self.start * (self.end / self.start) ** p

    def __str__(self) -> str:
        return repr(self.start) if self.shape == "constant" else f"{self.shape}:{self.start!r}:{self.end!r}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value over the whole of training."""
        return min(self.start, self.end), max(self.start, self.end)


def constant(value: float) -> Schedule:
    """The schedule that stays at `value`."""
    return Schedule(float(value), float(value), "constant")


def schedule(value: "float | str | Schedule") -> Schedule:
    """The schedule that a number, a text such as `linear:3e-4:0`, or a schedule stands for.

    Raises:
        ValueError: the text is neither a number nor `SHAPE:START:END`.
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        return constant(value)
    shape, *ends = value.split(":")
    try:
        numbers = [float(x) for x in (ends or [shape])]
        start, end = numbers if ends else (numbers[0], numbers[0])
    except ValueError:
        raise ValueError(
            f"{value!r} is not a schedule: write a number, or SHAPE:START:END with SHAPE one of {', '.join(SHAPES)}"
        ) from None
    return Schedule(start, end, shape if ends else "constant")  # pyright: ignore[reportArgumentType]  # checked in __post_init__


class Coefficient:
    """A schedule's present value as a 0-d tensor that is written in place, so that compiled code can hold on to it."""

    def __init__(self, value: Schedule, device: torch.device | str | None = None) -> None:
        self.schedule = value
        self.tensor = torch.tensor(value(0.0), device=device)

    def advance(self, progress: float) -> None:
        """Moves to `progress`, the share of training done."""
        self.tensor.fill_(self.schedule(progress))
