"""Acting in native code."""

from typing import Any

import torch
from torch import Tensor

from levelhead import native
from levelhead.accelerate.support import (
    Linear,
    acting_refusal,
    distribution_of,
    layers_of,
    linears,
    log_std_of,
    output_layer,
)
from levelhead.acting import Actor
from levelhead.actions import ActionHead, CategoricalHead, GaussianHead, MultiCategoricalHead, UnitBounds
from levelhead.native.plan import Acting
from levelhead.networks import Numbers, State
from levelhead.tree import Tree, tree_leaves


class NativeActor(Actor):
    """`Actor` in native code; torch takes over whenever `acting_refusal` has something against it."""

    _native: native.Actor | None = None
    _given: Tensor | None = None
    _steps: list[Any]

    def start(self, observation: Tree, begins: Tensor, noise: Tree, state: State) -> None:
        super().start(observation, begins, noise, state)
        self._native = None
        if acting_refusal(self.policy) is None:
            self._start(tree_leaves(observation)[0], noise.contiguous())

    def _start(self, observation: Tensor, noise: Tensor) -> None:
        policy, head, rows = self.policy, self.policy.action_head, noise.shape[1]
        output = output_layer(head)
        if self.choices is None:
            features = output.weight.new_zeros(rows, output.in_features)
            self._make_room(head.sample(features, noise[0]), len(noise))
        assert self.choices is not None
        action, parameters = self.choices
        given = self._given
        if given is None:
            given = self._given = torch.clone(head.to_environment(action))
            self._steps = [x.numpy() if self.arrays else x for x in given.unbind()]
        if isinstance(head, GaussianHead):
            parameters.log_std.copy_(log_std_of(head))
            parameters = parameters.mean

        layers = layers_of([*linears(policy.network.shared), *linears(policy.network.actor), Linear(output)])
        plan = Acting(layers, len(layers), rows, distribution_of(head), wide=observation.dtype == torch.float64)
        (reader,) = policy.reader.parts
        if isinstance(reader, Numbers) and (normalizer := reader.normalizer) is not None:
            plan.mean, plan.std = normalizer.mean.data_ptr(), normalizer.std.data_ptr()
            plan.clip = normalizer.clip
        kept = _write_bounds(plan, head)
        self._native = native.Actor(plan)
        tensors = (observation, noise, action, parameters, given)
        # What the addresses point at stays.
        self._kept = (plan, *kept, *tensors)
        self._places = [(x.data_ptr(), x.stride(0) * x.element_size()) for x in tensors]

    def __call__(self, t: int, mask: Tree | None) -> Tree:
        if self._native is None:
            return super().__call__(t, mask)
        observation, noise, action, parameters, given = [base + t * stride for base, stride in self._places]
        legal = None if mask is None else mask.data_ptr()
        self._native.act(observation, noise, legal, action, parameters, given)
        return self._steps[t].copy() if self.arrays else self._steps[t].clone()  # whoever keeps it may do so


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
