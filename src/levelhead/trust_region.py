"""Trust-region policy optimisation: the natural-gradient step of an actor, and the search for its length."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from levelhead.criterion import Criterion, Terms
from levelhead.distributed import total
from levelhead.numerics import Reduce, local
from levelhead.objectives import LineSearch, TrustRegionObjective
from levelhead.optimizer import ACTING, Optimizer
from levelhead.phases import Order, Phase, Refresh
from levelhead.rollout import Batch


class TrustRegion(Phase):
    """One step of everything that decides the actions, on the whole rollout at once.

    Along the natural gradient, as far as the quadratic model of the divergence allows, and back from there until the
    divergence itself is within its bound and the loss, entropy bonus included, has fallen. Where no length will do,
    nothing moves.

    Args:
        criterion: the losses.
        optimizer: of the parameters; its moments and learning rates have no part in this.
        objective: the surrogate, with the bound.

    Source: Schulman et al. 2015, "Trust region policy optimization", appendix C.
    """

    NAMES = ("train/step_norm", "train/step_fraction", "train/step_kl")

    def __init__(self, criterion: Criterion, optimizer: Optimizer, objective: TrustRegionObjective) -> None:
        self.criterion = criterion
        self.optimizer = optimizer
        self.objective = objective
        groups = criterion.policy.groups()
        self.parameters = [p for name in ACTING for p in groups.get(name, ()) if p.requires_grad]

    def __call__(
        self,
        batch: Batch,
        valid: Tensor,
        order: Order,  # noqa: ARG002  # there is one step, on everything
        refresh: Refresh | None = None,  # noqa: ARG002  # and returns stay
    ) -> dict[str, Tensor]:
        search = self.objective.search
        with _twice_differentiable():
            before = self.criterion.whole(batch, valid)
            slopes = torch.autograd.grad(before.loss, self.parameters, retain_graph=True, materialize_grads=True)
            gradient = total(_flat(slopes))
            product = fisher_product(_kl(before), self.parameters, search.damping, total)
            direction = conjugate_gradient(product, -gradient, search.iterations)
            curvature = direction @ product(direction)
        loss, means = total(before.loss), total(before.means)
        healthy = self.optimizer.check(
            ("loss", "policy gradient", "natural gradient"), torch.stack((loss, gradient.sum(), direction.sum()))
        )
        bound = self.objective.max_kl.tensor
        longest = torch.where(curvature > 0, (2 * bound / curvature).sqrt(), 0.0) * direction
        measure = partial(self.criterion.whole, batch, valid)
        fraction, kl = self._search(search, longest, loss, measure, healthy)
        metrics = zip(self.criterion.actor.names, means.unbind(), strict=True)
        steps = (longest.norm() * fraction, fraction, kl)
        return {**dict(metrics), **dict(zip(self.NAMES, steps, strict=True)), "grad/actor_norm": gradient.norm()}

    @torch.no_grad()
    def _search(
        self, search: LineSearch, longest: Tensor, loss: Tensor, measure: Callable[[], Terms], healthy: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Moves the parameters by the longest share of the step that will do; the share, 0 for none, and the divergence
        there, both 0-d."""
        bound = self.objective.max_kl.tensor
        start = [p.clone() for p in self.parameters]
        fraction, divergence = torch.zeros_like(bound), torch.zeros_like(bound)
        for trial in range(search.backtracks):
            share = search.shrink**trial
            self._move(start, share * longest)
            now = measure()
            reached, kl = total(torch.stack((now.loss, _kl(now)))).unbind()
            good = healthy & (kl <= bound) & (reached < loss) & (fraction == 0)
            fraction, divergence = torch.where(good, share, fraction), torch.where(good, kl, divergence)
            if fraction.device.type == "cpu" and bool(fraction):  # no waiting for a device
                break
        self._move(start, torch.where(fraction > 0, fraction * longest, 0.0))
        return fraction, divergence

    def _move(self, start: Sequence[Tensor], step: Tensor) -> None:
        parts = step.split([p.numel() for p in start])
        for p, origin, part in zip(self.parameters, start, parts, strict=True):
            p.copy_(origin + part.view_as(p))


def fisher_product(
    kl: Tensor, parameters: Sequence[Tensor], damping: float, reduce: Reduce = local
) -> Callable[[Tensor], Tensor]:
    """`v -> (H + damping) v`, H being the Hessian of `kl` at `parameters`: there, where the two policies are one, it is
    the Fisher matrix.

    Args:
        kl: 0-d, differentiable twice.
        parameters: P numbers in all.
        damping: multiple of the identity.
        reduce: sums over ranks, each of which has a part of `kl`.
    """
    slope = _flat(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))

    def product(v: Tensor) -> Tensor:
        along = torch.autograd.grad(slope @ v, parameters, retain_graph=True, materialize_grads=True)
        return reduce(_flat(along)) + damping * v

    return product


@torch.no_grad()
def conjugate_gradient(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int) -> Tensor:
    """An approximate solution x of `A x = b`, both `[P]`, after so many steps from 0; A is positive definite.

    Args:
        product: `v -> A v`.
        b: right-hand side.
        iterations: fewer are taken where the residual has become 0.

    Source: Hestenes and Stiefel 1952, "Methods of conjugate gradients for solving linear systems".
    """
    x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
    square = residual @ residual
    for _ in range(iterations):
        with torch.enable_grad():
            image = product(direction)
        curvature = direction @ image
        length = torch.where(curvature > 0, square / curvature, 0.0)
        x = x + length * direction
        residual = residual - length * image
        smaller = residual @ residual
        direction = residual + torch.where(square > 0, smaller / square, 0.0) * direction
        square = smaller
    return x


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.reshape(-1) for x in tensors])


def _kl(terms: Terms) -> Tensor:
    if terms.kl is None:
        raise ValueError("a trust region needs the divergence from the policy that acted")
    return terms.kl


@contextmanager
def _twice_differentiable() -> Generator[None]:
    """Recurrent layers on kernels whose backward pass can be differentiated; those of oneDNN and cuDNN can't."""
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)  # which set flags as attributes
    before = [backend.enabled for backend in backends]
    try:
        for backend in backends:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled
