"""Weak links from a head to the optimisers and target networks that must move with it."""

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from torch import Tensor

FIRST_MOMENTS = ("exp_avg", "momentum_buffer")
SECOND_MOMENTS = ("exp_avg_sq", "max_exp_avg_sq")
KNOWN = ("Adam", "AdamW", "NAdam", "RAdam", "SGD")
"""Optimisers of torch that keep these moments and nothing else that has a scale."""


class Optimizer(Protocol):
    """What a head reads of an optimiser: any `torch.optim.Optimizer`, or one laid out like it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]: ...


class Location(NamedTuple):
    """Where an optimiser holds a parameter."""

    owner: Tensor
    """The optimiser's own tensor: the parameter, or a flat one that the parameter is a view of."""
    offset: int
    """Of the parameter's first entry in `owner`."""


class Tracked(NamedTuple):
    """An optimiser, and where it holds the head's parameters."""

    optimizer: weakref.ref[Optimizer]
    locations: list[Location]


class Links:
    """Optimisers and mirrors of one head. Weak, no part of any state, and not copied along with the head."""

    def __init__(self) -> None:
        self.optimizers: list[Tracked] = []
        self.mirrors: list[weakref.ref[Any]] = []

    def __deepcopy__(self, memo: dict[int, object]) -> "Links":
        return Links()

    def __reduce__(self) -> tuple[type["Links"], tuple[()]]:
        return Links, ()


def locate(parameter: Tensor, optimizer: Optimizer) -> Location:
    """Where `optimizer` holds `parameter`.

    Found by identity, or by storage where `parameter` is a view of a flat tensor that is being optimised.

    Raises:
        ValueError: the optimiser doesn't hold the parameter, or keeps a state that nobody here knows how to rescale.
    """
    kind = type(optimizer)
    if kind.__module__.startswith("torch.optim") and kind.__name__ not in KNOWN:
        raise ValueError(f"no way to rescale the state of {kind.__name__}; accepted: {', '.join(KNOWN)}")
    held: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    for candidate in held:
        if candidate is parameter:
            return Location(candidate, 0)
    for candidate in held:
        offset = parameter.storage_offset() - candidate.storage_offset()
        same = candidate.untyped_storage().data_ptr() == parameter.untyped_storage().data_ptr()
        inside = 0 <= offset <= candidate.numel() - parameter.numel()
        if same and inside and candidate.is_contiguous() and parameter.is_contiguous():
            return Location(candidate, int(offset))
    raise ValueError(
        "the optimizer doesn't hold this head's parameters, neither as they are nor as part of a flat tensor"
    )


def rescale_moments(parameter: Tensor, optimizer: Optimizer, location: Location, factor: Tensor) -> None:
    """Multiplies the optimiser's first moments of `parameter` by `factor`, its second moments by the square.

    `factor` broadcasts over the parameter. Nothing happens before the optimiser's first step.
    """
    owner, offset = location
    state: dict[str, Any] = optimizer.state.get(owner, {})
    for names, scale in ((FIRST_MOMENTS, factor), (SECOND_MOMENTS, factor.square())):
        for name in names:
            moment = state.get(name)
            if moment is not None:
                part = moment.view(-1)[offset : offset + parameter.numel()].view_as(parameter)
                part.mul_(scale)  # in float64, as `scale` is
