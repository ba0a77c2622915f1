"""Learning from one rollout."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import Tensor

from levelhead.criterion import Criterion
from levelhead.distributed import WHOLE, Shards, total
from levelhead.divergence import KLControl
from levelhead.objectives import Objective
from levelhead.optimizer import Optimizer
from levelhead.phases import Order, Phase
from levelhead.rollout import Batch
from levelhead.seeding import Stream, generator

Estimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From log-probabilities and normalised values of now to advantages and normalised targets, all `[S, C]`."""


class Learner:
    """Improves actor and critic in phases, none of which waits for the device.

    Args:
        criterion: the losses that the phases minimise.
        optimizer: what they take their steps with.
        control: ends or adapts these by the policy's divergence.
        phases: of an iteration, in order.
        later: those that come when the objective has taken note of how far the policy has moved.
        frozen: in place of both in the first iterations, in which the actor stays as it is.
        frozen_iterations: so many of them.
        seed: of the run.
        engine: what takes the gradient steps, and why, for people to read.
        shards: whose environments a rollout's columns come from, in order.
        environments: in all shards of this process.
    """

    def __init__(
        self,
        criterion: Criterion,
        optimizer: Optimizer,
        control: KLControl,
        phases: Sequence[Phase],
        later: Sequence[Phase],
        frozen: Sequence[Phase],
        frozen_iterations: int,
        seed: int,
        engine: str = "torch",
        shards: Shards = WHOLE,
        environments: int = 1,
    ) -> None:
        self.criterion = criterion
        self.optimizer = optimizer
        self.control = control
        self.phases = phases
        self.later = later
        self.frozen = frozen
        self.frozen_iterations = frozen_iterations
        self.seed = seed
        self.engine = engine
        self.shards = shards
        self.environments = environments

    @property
    def needs_kl(self) -> bool:
        """Whether batches must hold the parameters of the distribution that acted."""
        return self.criterion.kl

    def advance(self, progress: float, iteration: int) -> None:
        """Moves every schedule to `progress`, the share of training done before this iteration, counted from 0."""
        self.criterion.advance(progress)
        self.optimizer.advance(progress, iteration)
        self.control.advance(progress)
        self.criterion.policy.action_head.advance(progress)
        for phase in (*self.phases, *self.later):
            phase.advance(progress)

    def every_phase(self) -> tuple[Phase, ...]:
        """Those of all iterations."""
        return (*self.frozen, *self.phases, *self.later)

    def learn(
        self, batch: Batch, valid: Tensor, healthy: Tensor, iteration: int, estimate: Estimate | None = None
    ) -> dict[str, Tensor]:
        """All phases over `batch`.

        Args:
            batch: C columns of S steps.
            valid: `[S, C]` bool; other rows weigh nothing.
            healthy: 0-d bool; where False, no step is taken.
            iteration: counted from 0; seeds the permutations.
            estimate: called before each epoch; None where advantages and targets stay.

        Returns:
            Metrics by name, 0-d tensors. Where several phases have one, it is that of the first.
        """

        def refresh(batch: Batch, estimate: Estimate) -> Batch:
            opinion = self.criterion.opinion(batch)
            advantage, target = estimate(opinion.log_prob, opinion.value)
            return replace(batch, advantage=advantage, target=target).only(valid)

        batch = batch.only(valid)
        self.optimizer.begin(healthy)
        self.control.begin()
        order = self._order(iteration)
        refreshed = None if estimate is None else partial(refresh, estimate=estimate)
        metrics: dict[str, Tensor] = {}
        for phase in self.frozen if iteration < self.frozen_iterations else self.phases:
            metrics = {**phase(batch, valid, order, refreshed), **metrics}
        if iteration >= self.frozen_iterations:
            metrics |= self._adapt(batch, valid)
            for phase in self.later:
                metrics = {**phase(batch, valid, order, refreshed), **metrics}
        if "train/entropy_loss" in metrics:
            metrics["entropy/action"] = -metrics["train/entropy_loss"]
        return {
            **metrics,
            "train/entropy_coef": self.criterion.entropy_coef.tensor,
            "train/learning_rate": self.optimizer.learning_rates["actor"].tensor,
        }

    def _order(self, iteration: int) -> Order:
        own = [generator(self.seed, Stream.PERMUTATION, iteration, shard) for shard in self.shards.mine]
        return Order(own, cache(partial(generator, self.seed, Stream.PERMUTATION, iteration)), self.environments)

    @torch.no_grad()
    def _adapt(self, batch: Batch, valid: Tensor) -> dict[str, Tensor]:
        """Tells the objective how far the policy has moved, if it wants to know."""
        objective = self.criterion.objective
        if not objective.needs_kl:
            return {}
        kl = self.criterion.whole(batch, valid).kl
        if kl is None:
            return {}
        kl = total(kl)
        return {"train/kl": kl, **objective.adapt(kl)}

    def forget(self) -> None:
        """Drops what phases keep of earlier rollouts."""
        for phase in (*self.phases, *self.later):
            phase.forget()

    @property
    def blocked(self) -> Tensor:
        """0-d float: 1 where something was not finite in the latest `learn`, or before, so that steps were left out."""
        return self.optimizer.blocked

    def faults(self) -> dict[str, Tensor]:
        """0-d bool per checked tensor: whether it was not finite in the latest `learn`."""
        return self.optimizer.faults()

    def state_dict(self) -> dict[str, Tensor]:
        """Whatever changes during training beside the policy."""
        return {f"{prefix}{name}": x for prefix, part in self._parts().items() for name, x in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies every part's state back, in place."""
        for prefix, part in self._parts().items():
            part.load_state_dict({name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)})

    def _parts(self) -> dict[str, Optimizer | Objective | Phase]:
        phases = {f"phase{i}.": phase for i, phase in enumerate((*self.phases, *self.later))}
        return {"optimizer.": self.optimizer, "objective.": self.criterion.objective, **phases}
