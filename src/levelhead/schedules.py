"""One schedule type for every coefficient: a value that moves from `start` to `end` as training progresses."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

Shape = Literal["constant", "linear", "cosine", "exponential", "piecewise"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
FORMS = (
    "a number, SHAPE:START:END with SHAPE one of linear, cosine, exponential, or piecewise:0=VALUE,SHARE=VALUE,1=VALUE"
)


@dataclass(frozen=True)
class Schedule:
    """A coefficient over the course of training.

    Written `3e-4` (constant), `SHAPE:START:END`, for example `linear:3e-4:0`, or with a value at each share of training
    and straight lines between them, `piecewise:0=0,0.1=3e-4,1=0`.

    Args:
        start: value at progress 0.
        end: value at progress 1; equal to `start` where `shape` is constant.
        shape: `constant`, `linear`, `cosine` (half a cosine wave, flat at both ends), `exponential` (the same factor
            per step; both ends must be positive) or `piecewise`.
        points: shares of training, from 0 to 1 in rising order, each with its value, where `shape` is `piecewise`.

    Raises:
        ValueError: an end is not finite, or the shape doesn't fit the ends.
    """

    start: float
    end: float
    shape: Shape = "linear"
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.start, self.end, *itertools.chain.from_iterable(self.points)))):
            raise ValueError(f"a schedule goes between finite numbers, not {self.start} and {self.end}")
        if self.shape not in SHAPES:
            raise ValueError(f"unknown schedule shape {self.shape!r}; known: {', '.join(SHAPES)}")
        if self.shape == "constant" and self.start != self.end:
            raise ValueError(f"a constant schedule cannot go from {self.start} to {self.end}")
        if bool(self.points) != (self.shape == "piecewise"):
            raise ValueError(f"points belong to a piecewise schedule and to no other; shape is {self.shape}")
        if self.points:
            shares, values = zip(*self.points, strict=True)
            rising = all(a < b for a, b in itertools.pairwise(shares))
            if not (rising and (shares[0], shares[-1]) == (0, 1) and (values[0], values[-1]) == (self.start, self.end)):
                raise ValueError(f"the shares of a piecewise schedule rise from 0 to 1, not as in {list(shares)}")
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
            case "piecewise":
                (a, low), (b, high) = next(pair for pair in itertools.pairwise(self.points) if p <= pair[1][0])
                return low + (high - low) * (p - a) / (b - a)

    def __str__(self) -> str:
        if self.shape == "piecewise":
            return "piecewise:" + ",".join(f"{share!r}={value!r}" for share, value in self.points)
        return repr(self.start) if self.shape == "constant" else f"{self.shape}:{self.start!r}:{self.end!r}"

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value over the whole of training."""
        values = [self.start, self.end, *(value for _, value in self.points)]
        return min(values), max(values)


def constant(value: float) -> Schedule:
    """The schedule that stays at `value`."""
    return Schedule(float(value), float(value), "constant")


def schedule(value: "float | str | Schedule") -> Schedule:
    """The schedule that a number, a text such as `linear:3e-4:0`, or a schedule stands for.

    Raises:
        ValueError: the text has none of a schedule's forms.
    """
    if isinstance(value, Schedule):
        return value
    if not isinstance(value, str):
        return constant(value)
    shape, *rest = value.split(":")
    points: tuple[tuple[float, float], ...] = ()
    try:
        if shape == "piecewise":
            (text,) = rest
            points = tuple((float(share), float(x)) for share, x in (pair.split("=") for pair in text.split(",")))
            start, end = points[0][1], points[-1][1]
        else:
            start, end = map(float, rest or (shape, shape))
    except ValueError:
        raise ValueError(f"{value!r} is not a schedule: write {FORMS}") from None
    return Schedule(start, end, shape if rest else "constant", points)  # pyright: ignore[reportArgumentType]  # checked in __post_init__


class Coefficient:
    """A schedule's present value as a 0-d tensor that is written in place, so that compiled code can hold on to it."""

    def __init__(self, value: Schedule, device: torch.device | str | None = None) -> None:
        self.schedule = value
        self.tensor = torch.tensor(value(0.0), device=device)

    def advance(self, progress: float, factor: float = 1.0) -> None:
        """Moves to `factor` times the value at `progress`, the share of training done."""
        self.tensor.fill_(factor * self.schedule(progress))
