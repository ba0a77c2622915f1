"""Where native code finds the parts of a policy."""

import ctypes
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from levelhead.actions import (
    ActionHead,
    CategoricalHead,
    GaussianHead,
    IndependentSigma,
    MultiCategoricalHead,
    ScheduledSigma,
)
from levelhead.native.plan import Distribution, Layer, Reading
from levelhead.networks import Numbers, Policy, Torso

# In the order of plan.h.
ACTIVATIONS: dict[type[nn.Module], int] = {nn.Tanh: 1, nn.ReLU: 2, nn.ELU: 3, nn.SiLU: 4}
CATEGORICAL, GAUSSIAN = 0, 1


class UnsupportedError(Exception):
    """Native code has no such thing; the message says what."""


class Linear(NamedTuple):
    """A linear layer and what follows it."""

    layer: nn.Linear
    activation: int = 0


def has_bias(layer: nn.Linear) -> bool:
    return isinstance(getattr(layer, "bias", None), nn.Parameter)


def output_layer(head: ActionHead) -> nn.Linear:
    """The layer that answers the distribution's parameters.

    Raises:
        UnsupportedError: it is another kind of head.
    """
    if isinstance(head, CategoricalHead | MultiCategoricalHead | GaussianHead):
        return head.linear
    raise UnsupportedError(f"there is a {type(head).__name__}")


def linears(torso: Torso) -> list[Linear]:
    """The layers of a torso.

    Raises:
        UnsupportedError: there are others than linear ones, or one stands there twice.
    """
    found: list[Linear] = []
    for module in _in_order(torso):
        if type(module) is nn.Linear and has_bias(module):
            found.append(Linear(module))
        elif type(module) in ACTIVATIONS and found and not found[-1].activation:
            if isinstance(module, nn.ELU) and module.alpha != 1.0:
                raise UnsupportedError(f"there is an ELU whose alpha is {module.alpha}")
            found[-1] = Linear(found[-1].layer, ACTIVATIONS[type(module)])
        else:
            raise UnsupportedError(f"there is a {type(module).__name__} in the network")
    if len({id(linear.layer) for linear in found}) < len(found):
        raise UnsupportedError("a layer of the network stands in two places")
    return found


def _in_order(module: nn.Module) -> Iterator[nn.Module]:
    if type(module) is Torso:
        for layer in module.layers:
            yield from _in_order(layer)
    elif type(module) is nn.Sequential:
        for layer in module:
            yield from _in_order(layer)
    elif type(module) is not nn.Identity:
        yield module


def layers_of(stack: Iterable[Linear], gradient: Callable[[Tensor], int] | None = None) -> ctypes.Array[Layer]:
    """Layers as native code reads them.

    Args:
        stack: from the first to the last.
        gradient: where that of a parameter is; None where nothing is learned.

    Raises:
        ValueError: they don't fit each other.
    """
    stack = list(stack)
    require_chain(stack)
    layers = (Layer * len(stack))()
    for layer, (linear, activation) in zip(layers, stack, strict=True):
        layer.outputs, layer.inputs = linear.weight.shape
        layer.activation = activation
        layer.weight, layer.bias = linear.weight.data_ptr(), linear.bias.data_ptr()
        if gradient is not None:
            layer.weight_gradient, layer.bias_gradient = gradient(linear.weight), gradient(linear.bias)
    return layers


def require_chain(stack: Sequence[Linear]) -> None:
    """Refuses layers that don't fit each other, with ValueError: native code would read beyond them."""
    for (before, _), (after, _) in itertools.pairwise(stack):
        if after.weight.shape[1] != before.weight.shape[0]:
            raise ValueError(f"{after} follows {before}, and doesn't take what that answers")


def fits(observation: Tensor, layers: ctypes.Array[Layer]) -> bool:
    """Whether observations `[T, N, ...]` are what the first of these layers takes, in a precision that is known."""
    numbers = observation.shape[2:].numel()
    return observation.dtype in (torch.float32, torch.float64) and numbers == layers[0].inputs


def reading_of(policy: Policy, layers: ctypes.Array[Layer], rows: int, dtype: torch.dtype) -> Reading:
    """How native code reads observations of a precision, so many rows at once, through layers that it takes."""
    plan = Reading(layers, len(layers), rows, dtype == torch.float64)
    (reader,) = policy.reader.parts
    if isinstance(reader, Numbers) and (normalizer := reader.normalizer) is not None:
        plan.mean, plan.std = normalizer.mean.data_ptr(), normalizer.std.data_ptr()
        plan.clip = normalizer.clip
    return plan


def log_std_of(head: GaussianHead) -> Tensor:
    """`[D]`, the same in every state."""
    assert isinstance(head.sigma, ScheduledSigma | IndependentSigma)
    return head.sigma.log_std


def distribution_of(head: ActionHead, gradient: Callable[[Tensor], int] | None = None) -> Distribution:
    """An action head's distribution as native code reads it.

    Args:
        head: one of `ACTION_HEADS`.
        gradient: where that of a parameter is; None where nothing is learned.
    """
    if isinstance(head, GaussianHead):
        log_std, learned = log_std_of(head), isinstance(head.sigma, IndependentSigma)
        slope = gradient(log_std) if learned and gradient is not None else None
        return Distribution(GAUSSIAN, None, head.code_dim, log_std.data_ptr(), slope)
    counts = head.actions if isinstance(head, MultiCategoricalHead) else (head.code_dim,)
    return Distribution(CATEGORICAL, (ctypes.c_int32 * len(counts))(*counts), len(counts))
