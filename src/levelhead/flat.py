"""Parameters as views of one flat tensor, so that clipping and optimising touch one tensor per group."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    gradient.mul_((max_norm / norm).clamp(max=1.0))
    return norm


@dataclass(frozen=True)
class AdamGroup:
    """Flat parameters and how they are optimised."""

    flat: FlatParameters
    learning_rate: Tensor
    """0-d, written in place by whoever owns the schedule."""
    eps: float


class FlatAdam(torch.optim.Adam):
    """torch's Adam with one flat parameter per group, to be stepped with `apply`.

    `step` works as always, but looks every tensor up anew and runs hooks, which costs several times what the fused
    kernel does at these sizes; `apply` hands the same tensors to the same kernel.

    Args:
        groups: by name.
        skip: 0-d float on the parameters' device; where it is 1, `apply` changes nothing.
    """

    def __init__(self, groups: Mapping[str, AdamGroup], skip: Tensor) -> None:
        super().__init__(
            [{"params": [g.flat.parameter], "lr": g.learning_rate, "eps": g.eps} for g in groups.values()], fused=True
        )
        self.groups = groups
        self.skip = skip
        for group in groups.values():
            self.state[group.flat.parameter] = {
                "step": torch.zeros((), device=skip.device),
                "exp_avg": torch.zeros_like(group.flat.gradient),
                "exp_avg_sq": torch.zeros_like(group.flat.gradient),
            }

    @torch.no_grad()
    def apply(self) -> None:
        """One step of every group."""
        beta1, beta2 = self.defaults["betas"]
        taken = 1 - self.skip
        for group in self.groups.values():
            state = self.state[group.flat.parameter]
            state["step"].add_(taken)
            torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]  # the kernel behind torch.optim.Adam
                [group.flat.parameter],
                [group.flat.gradient],
                [state["exp_avg"]],
                [state["exp_avg_sq"]],
                [],
                [state["step"]],
                lr=group.learning_rate,
                beta1=beta1,
                beta2=beta2,
                weight_decay=0.0,
                eps=group.eps,
                amsgrad=False,
                maximize=False,
                found_inf=self.skip,
            )

    def moments(self) -> dict[str, Tensor]:
        """Adam's state, by `<group>.<name>`."""
        return {f"{n}.{key}": x for n, g in self.groups.items() for key, x in self.state[g.flat.parameter].items()}
