"""Acting in native code."""

import ctypes
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from levelhead import native
from levelhead.accelerate.kept import Kept
from levelhead.accelerate.layout import (
    Linear,
    distribution_of,
    fits,
    layers_of,
    linears,
    log_std_of,
    output_layer,
    reading_of,
)
from levelhead.accelerate.support import acting_refusal
from levelhead.acting import Actor, Stretch
from levelhead.actions import ActionHead, CategoricalHead, GaussianHead, MultiCategoricalHead, UnitBounds
from levelhead.native.plan import Acting, Layer
from levelhead.networks import Policy, State
from levelhead.tree import Tree, tree_leaves


class NativeActor(Actor):
    """`Actor` in native code; torch takes over whenever `acting_refusal` has something against it."""

    _native: native.Actor | None = None
    _given: Tensor | None = None
    _actions: list[Any]

    def __init__(self, policy: Policy, engine: str = "torch", *, arrays: bool = False) -> None:
        super().__init__(policy, engine, arrays=arrays)
        self._layers = Kept(policy, self._find_layers)

    def start(self, observation: Tree, begins: Tensor, noise: Tree, state: State) -> None:
        super().start(observation, begins, noise, state)
        self._native = None
        layers = self._layers()
        if layers is not None and fits(given := tree_leaves(observation)[0], layers):
            self._start(layers, given, noise.contiguous())

    def _find_layers(self) -> ctypes.Array[Layer] | None:
        if acting_refusal(self.policy) is not None:
            return None
        network, output = self.policy.network, output_layer(self.policy.action_head)
        return layers_of([*linears(network.shared), *linears(network.actor), Linear(output)])

    def _start(self, layers: ctypes.Array[Layer], observation: Tensor, noise: Tensor) -> None:
        policy, head, rows = self.policy, self.policy.action_head, noise.shape[1]
        if self.choices is None:
            features = noise.new_zeros(rows, layers[-1].inputs)
            self._make_room(head.sample(features, noise[0]), len(noise))
        assert self.choices is not None
        action, parameters = self.choices
        given = self._given
        if given is None:
            given = self._given = torch.clone(head.to_environment(action))
            self._actions = [x.numpy() if self.arrays else x for x in given.unbind()]
        if isinstance(head, GaussianHead):
            parameters.log_std.copy_(log_std_of(head))
            parameters = parameters.mean

        plan = Acting(reading_of(policy, layers, rows, observation.dtype), distribution_of(head))
        kept = _write_bounds(plan, head)
        tensors = (observation, noise, action, parameters, given)
        plan.observation, plan.noise, plan.action, plan.parameters, plan.given = (x.data_ptr() for x in tensors)
        self._native = native.Actor(plan)
        # What the addresses point at stays.
        self._kept = (plan, *kept, *tensors)

    def __call__(self, t: int, mask: Tree | None) -> Tree:
        if self._native is None:
            return super().__call__(t, mask)
        self._native.act(t, None if mask is None else mask.data_ptr())
        return self._actions[t].copy() if self.arrays else self._actions[t].clone()  # whoever keeps it may do so

    def stretch(self, rows: Sequence[Tensor]) -> Stretch | None:
        if self._native is None or not self.arrays or not native.has_loop():
            return None
        return partial(self._native.stretch, actions=self._actions, rows=[x.numpy() for x in rows])


def _write_bounds(plan: Acting, head: ActionHead) -> tuple[Tensor, ...]:
    """What makes an action the environment's; the tensors that the plan points at."""
    match head:
        case CategoricalHead():
            start = torch.tensor([head.start])
            plan.start = start.data_ptr()
            return (start,)
        case MultiCategoricalHead():
            plan.start = head.start.data_ptr()
        case GaussianHead():
            bounds = head.bounds
            plan.low, plan.high = bounds.low.data_ptr(), bounds.high.data_ptr()
            if isinstance(bounds, UnitBounds):
                plan.center, plan.half_range = bounds.center.data_ptr(), bounds.half_range.data_ptr()
        case _:
            raise TypeError(f"there is no native code for {type(head).__name__}")
    return ()
