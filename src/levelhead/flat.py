"""Parameters as views of one flat tensor, so that clipping and optimising touch one tensor per group."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FlatParameters:
    """Several parameters in one tensor."""

    parameter: nn.Parameter
    gradient: Tensor
    """`parameter.grad`, allocated once; the gradients of the parts are views of it."""


def flatten(parameters: Sequence[nn.Parameter]) -> FlatParameters:
    """Moves parameters of one dtype and device into a flat tensor; they become views of it, their gradients likewise.

    The parameters stay the objects they were, so modules need not know. From now on gradients accumulate in place:
    zero the flat gradient, never set one to None.
    """
    flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
    gradient = torch.zeros_like(flat)
    flat.grad = gradient
    offset = 0
    for p in parameters:
        end = offset + p.numel()
        p.data = flat.data[offset:end].view_as(p)
        p.grad = gradient[offset:end].view_as(p)
        offset = end
    return FlatParameters(flat, gradient)


def clip_(gradient: Tensor, max_norm: float) -> Tensor:
    """Scales a gradient down to `max_norm` where it is longer, in place; its norm from before, 0-d."""
    norm = torch.linalg.vector_norm(gradient)
    gradient.mul_(norm.reciprocal().mul_(max_norm).clamp_(max=1.0))
    return norm


@dataclass(frozen=True)
class AdamGroup:
    """Flat parameters and how they are optimised."""

    flat: FlatParameters
    learning_rate: Tensor
    """0-d, written in place by whoever owns the schedule."""
    eps: float


class FlatAdam:
    """Adam with one flat parameter per group, on the fused kernel of `torch.optim.Adam`.

    The kernel alone: `torch.optim.Adam.step` looks every tensor up anew and runs hooks, at several times the kernel's
    cost for these sizes, and making a `torch.optim.Optimizer` imports the compiler, 70 MB of it.

    Args:
        groups: by name.
        skip: 0-d float on the parameters' device; where it is 1, `step` changes nothing.
        betas: retention of the first and second moments.

    Attributes:
        param_groups, state: laid out as in `torch.optim`, for those who look for moments there.

    Source: Kingma and Ba 2015, "Adam: a method for stochastic optimization", algorithm 1.
    """

    def __init__(
        self, groups: Mapping[str, AdamGroup], skip: Tensor, betas: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self.groups = groups
        self.skip = skip
        self.betas = betas
        self.param_groups: list[dict[str, Any]] = [{"params": [g.flat.parameter]} for g in groups.values()]
        self.state: dict[Tensor, dict[str, Tensor]] = {
            g.flat.parameter: {
                "step": torch.zeros((), device=skip.device),
                "exp_avg": torch.zeros_like(g.flat.gradient),
                "exp_avg_sq": torch.zeros_like(g.flat.gradient),
            }
            for g in groups.values()
        }

    @torch.no_grad()
    def step(self, groups: Iterable[str]) -> None:
        """One step of the groups named."""
        taken = 1 - self.skip
        for group in (self.groups[name] for name in groups):
            state = self.state[group.flat.parameter]
            state["step"].add_(taken)
            if torch.compiler.is_compiling():
                self._move(group, state)
                continue
            torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]  # the kernel behind torch.optim.Adam
                [group.flat.parameter],
                [group.flat.gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=group.learning_rate,
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=0.0,
                eps=group.eps,
                amsgrad=False,
                maximize=False,
                found_inf=self.skip,
            )

    def _move(self, group: AdamGroup, state: Mapping[str, Tensor]) -> None:
        """What the kernel does, written out for compilers, which know nothing of it where the rate is a tensor."""
        x, gradient = group.flat.parameter, group.flat.gradient
        # In float64, as 1 - 0.999^step would keep four digits of a float32.
        correction1, correction2 = (1 - beta ** state["step"].double() for beta in self.betas)
        rate, root = (group.learning_rate / correction1).to(x.dtype), correction2.sqrt().to(x.dtype)
        first = torch.lerp(state["exp_avg"], gradient, 1 - self.betas[0])
        second = self.betas[1] * state["exp_avg_sq"] + (1 - self.betas[1]) * gradient * gradient
        moved = x - rate * first / (second.sqrt() / root + group.eps)
        for old, new in ((state["exp_avg"], first), (state["exp_avg_sq"], second), (x, moved)):
            old.copy_(torch.where(self.skip > 0, old, new))

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, by `<group>.<name>`."""
        return {f"{n}.{key}": x for n, g in self.groups.items() for key, x in self.state[g.flat.parameter].items()}
