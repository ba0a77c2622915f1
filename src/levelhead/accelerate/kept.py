"""What is made of a policy, and made anew only where the policy has changed."""

import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from torch import nn

from levelhead.networks import Policy

T = TypeVar("T")
SETTINGS = ("alpha", "bounds", "reduced")
"""Attributes of modules, beside modules and parameters, that native code has to know."""


class Kept(Generic[T]):
    """What was made of a policy, until the policy is changed.

    Every rollout and its learning ask for theirs, and a walk through all modules takes as long as twenty steps.

    Args:
        policy: that it is made of.
        make: makes it, from the policy's modules, their parameters and `SETTINGS`, and from what `other` answers.
        other: whatever else decides what is made.
    """

    def __init__(self, policy: Policy, make: Callable[[], T], other: Callable[[], object] = lambda: None) -> None:
        self.policy = policy
        self.make = make
        self.other = other
        self._of: _Seen | None = None

    def __call__(self) -> T:
        other = self.other()
        if self._of is None or self._of.has_changed() or self._other != other:
            self._of, self._other, self._made = _Seen(self.policy), other, self.make()
        return self._made


class _Seen:
    """A policy's modules and parameters, to be compared with later."""

    def __init__(self, policy: Policy) -> None:
        modules = list(policy.modules())
        # Modules write into these, and never replace them.
        self._hooks = [hooks for m in modules for hooks in hooks_of(m)]
        self._tables = [table for m in modules for table in (m._modules, m._parameters)]
        self._parts = [part for table in self._tables for part in table.values()]
        self._settings = [(vars(m), name) for m in modules for name in SETTINGS if name in vars(m)]
        self._set = [table[name] for table, name in self._settings]
        self._parameters = list(policy.parameters())
        self._kinds = [_kind(p) for p in self._parameters]
        self._hooked = any(self._hooks)

    def has_changed(self) -> bool:
        """Whether modules, settings, parameters or where and what these are differ from then, or there are hooks."""
        now = itertools.chain.from_iterable(map(dict.values, self._tables))
        same = len(self._parts) == sum(map(len, self._tables)) and all(map(operator.is_, self._parts, now))
        same &= all(then is table[name] for then, (table, name) in zip(self._set, self._settings, strict=True))
        return self._hooked or any(self._hooks) or not same or self._kinds != list(map(_kind, self._parameters))


def _kind(p: nn.Parameter) -> tuple[object, ...]:
    return p.dtype, p.shape, p.data_ptr(), p.requires_grad, has_hooks(p)


def hooked(policy: Policy) -> bool:
    """Whether something of somebody else's is called on the way through a policy, or back."""
    return any(map(has_hooks, policy.parameters())) or modules_hooked(policy)


def modules_hooked(policy: Policy) -> bool:
    """The same of its modules alone."""
    return any(hooks for m in policy.modules() for hooks in hooks_of(m))


def has_hooks(p: nn.Parameter) -> bool:
    return bool(p._backward_hooks or p._post_accumulate_grad_hooks)  # tables stay when they are empty


def hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
