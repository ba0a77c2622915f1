"""Gradient steps through torch.compile."""

import warnings
from collections.abc import Mapping
from types import FunctionType, MethodType

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from levelhead.accelerate.kept import hooked
from levelhead.criterion import Criterion, Loss, Terms
from levelhead.distributed import ranks
from levelhead.divergence import KLControl
from levelhead.optimizer import Optimizer
from levelhead.phases import Epochs, Order, Refresh, Split
from levelhead.rollout import Batch

KNOWN = ("levelhead", "torch")
"""Packages of whose parts it is known that nothing but tensors decides what they do within an iteration."""


class CompiledEpochs(Epochs):
    """`Epochs` whose gradient step, from the gather to Adam, is one compiled graph; where there are several ranks, one
    from the gather to the gradient.

    It is compiled with the first step, for that batch's shapes. Where that fails, torch takes this step and all others,
    and a warning says why. Torch takes those of iterations, too, in which there are hooks that want to be called.

    Args:
        loss, optimizer, split, control: as `Epochs` has them.
        criterion: whose loss it is.
    """

    def __init__(
        self, loss: Loss, optimizer: Optimizer, split: Split, criterion: Criterion, control: KLControl | None = None
    ) -> None:
        super().__init__(loss, optimizer, split, control)
        policy = self._policy = criterion.policy
        self._module = _LossOf(policy, loss)
        paths = {id(p): path for path, p in self._module.named_parameters()}
        self._layout = {
            name: [(paths[id(p)], p) for p in group] for name, group in policy.groups().items() if name in self.groups
        }
        # Made here, as a graph can write to what exists but not make it.
        names = ("loss", *(f"{name} gradient" for name in self.groups))
        optimizer.check(names, torch.zeros(len(names), device=policy.device))
        # A copy of the function's code: what was compiled hangs on that, and the number of times it may be.
        code = CompiledEpochs._in_one_graph.__code__.replace()
        own = MethodType(FunctionType(code, globals()), self)
        self._graph = torch.compile(own, fullgraph=True, dynamic=False)
        self._checked = self._hooked = False
        parts = (*policy.modules(), criterion.objective)
        self._known = all(type(part).__module__.split(".")[0] in KNOWN for part in parts)
        self._alone = ranks() == 1

    def __call__(self, batch: Batch, valid: Tensor, order: Order, refresh: Refresh | None = None) -> dict[str, Tensor]:
        self._checked, self._hooked = False, hooked(self._policy)
        return super().__call__(batch, valid, order, refresh)

    def _learn(self, batch: Batch, index: Tensor, weight: Tensor) -> None:
        if self._graph is not None and not self._hooked:
            try:
                # Whether the graph still fits is asked once an iteration: it takes a fifth of a step, and within one
                # nothing changes but numbers, in what is known here.
                with torch.compiler.set_stance(skip_guard_eval_unsafe=self._checked and self._known):
                    terms = self._graph(batch, index, weight)
                self._checked = True
            except RuntimeError as error:
                self._give_up(error)
            else:
                if not self._alone:
                    self._move(self._total(terms))
                return
        super()._learn(batch, index, weight)

    def _give_up(self, error: RuntimeError) -> None:
        """Leaves the steps to torch, if it is compilation that failed."""
        from torch._dynamo.exc import TorchDynamoException  # half a second

        if not isinstance(error, TorchDynamoException):
            raise error
        self._graph = None
        inner = getattr(error, "inner_exception", error)
        reason = next((line for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
        warnings.warn(f"gradient steps by torch after all, as they can't be compiled: {reason}", stacklevel=2)

    def _in_one_graph(self, batch: Batch, index: Tensor, weight: Tensor) -> Terms:
        with torch.no_grad():
            flat = {name: self.optimizer.flat[name] for name in self.groups}
            given = {name: x.parameter.detach() for name, x in flat.items()}
            find = grad_and_value(self._loss_of, has_aux=True)
            gradients, (loss, (means, *kl)) = find(given, batch.take(index), weight)
            for name, gradient in gradients.items():
                flat[name].gradient.copy_(gradient)
            terms = Terms(loss, means, *kl)
            if self._alone:
                self._move(terms)
            return terms

    def _loss_of(self, flat: Mapping[str, Tensor], batch: Batch, weight: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The loss as a function of the flat parameters, and what else the terms hold."""
        parameters: dict[str, Tensor] = {}
        for name, layout in self._layout.items():
            parts = flat[name].split([p.numel() for _, p in layout])
            for (path, p), x in zip(layout, parts, strict=True):
                parameters[path] = (x if p.requires_grad else x.detach()).view(p.shape)
        loss, *rest = functional_call(self._module, parameters, (batch, weight))
        return loss, [x for x in rest if x is not None]


class _LossOf(nn.Module):
    """A loss as a module that has the policy's parameters, so that others can be put in their place."""

    def __init__(self, policy: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.policy = policy
        self.of = loss.of

    def forward(self, batch: Batch, weight: Tensor) -> Terms:
        return self.of(batch, weight)
