"""Epochs of minibatches over one rollout."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from levelhead.flat import AdamGroup, FlatAdam, clip_, flatten
from levelhead.metrics import RunningMean
from levelhead.networks import Policy, State
from levelhead.objectives import Objective
from levelhead.rollout import Batch
from levelhead.schedules import Coefficient, Schedule
from levelhead.seeding import Stream, generator
from levelhead.tree import restore, tree_map


@dataclass(frozen=True)
class GroupSettings:
    """How one group of parameters is optimised."""

    learning_rate: Schedule
    eps: float
    """Adam's denominator offset."""
    max_grad_norm: float
    """The group's gradient is scaled down to this norm."""


@dataclass(frozen=True)
class LearnerSettings:
    """How a rollout is learned from."""

    epochs: int
    minibatches: int
    entropy_coef: Schedule
    value_coef: Schedule
    value_clip: Schedule | None
    """Width of the value clip on the normalised axis; None for no clip."""
    groups: Mapping[str, GroupSettings]
    """By the names of `Policy.groups`."""


class Learner:
    """Minimises policy loss, value loss and negative entropy with one Adam over flat parameter groups.

    Every minibatch step is a function of tensors that are written in place, and nothing in `learn` waits for the
    device: a step whose loss or gradient is not finite is skipped, with all that follow, and reported.

    Args:
        policy: its parameters become views of one flat tensor per group.
        objective: what the actor maximises.
        settings: as they say.
        seed: of the run.
    """

    def __init__(self, policy: Policy, objective: Objective, settings: LearnerSettings, seed: int) -> None:
        self.policy = policy
        self.objective = objective
        self.settings = settings
        self.seed = seed
        device = policy.device
        self._blocked = torch.zeros((), device=device)
        self.flat = {name: flatten(parameters) for name, parameters in policy.groups().items()}
        self.learning_rates = {name: Coefficient(settings.groups[name].learning_rate, device) for name in self.flat}
        self.optimizer = FlatAdam(
            {
                name: AdamGroup(flat, self.learning_rates[name].tensor, settings.groups[name].eps)
                for name, flat in self.flat.items()
            },
            skip=self._blocked,
        )
        policy.value_head.track(self.optimizer)
        self.entropy_coef = Coefficient(settings.entropy_coef, device)
        self.value_coef = Coefficient(settings.value_coef, device)
        self.value_clip = None if settings.value_clip is None else Coefficient(settings.value_clip, device)
        self._loss_weights = torch.ones(3, device=device)
        self._checked = ("loss", *(f"{name} gradient" for name in self.flat))
        self._broken = torch.zeros(len(self._checked), dtype=torch.bool, device=device)
        self._means = RunningMean(
            (
                "train/policy_gradient_loss",
                "train/value_loss",
                "train/entropy_loss",
                "train/approx_kl",
                "train/clip_fraction",
                *(f"entropy/{part}" for part in policy.action_head.names),
                "train/loss",
                *(f"grad/{name}_norm" for name in self.flat),
            ),
            device,
        )
        self.advance(0.0)

    def advance(self, progress: float) -> None:
        """Moves every schedule to `progress`, the share of training done."""
        for coefficient in (*self.learning_rates.values(), self.entropy_coef, self.value_coef, self.value_clip):
            if coefficient is not None:
                coefficient.advance(progress)
        self._loss_weights[1].copy_(self.value_coef.tensor)
        self._loss_weights[2].copy_(-self.entropy_coef.tensor)
        self.objective.advance(progress)
        self.policy.action_head.advance(progress)

    def learn(self, batch: Batch, valid: Tensor, healthy: Tensor, iteration: int) -> dict[str, Tensor]:
        """All epochs over `batch`.

        Args:
            batch: C columns of S steps.
            valid: `[S, C]` bool; other rows weigh nothing.
            healthy: 0-d bool; where False, no step is taken.
            iteration: seeds the permutations, one per epoch.

        Returns:
            Metrics by name, 0-d tensors.
        """
        batch = batch.only(valid)
        self._blocked.copy_(~healthy)
        self._broken.zero_()
        for epoch in range(self.settings.epochs):
            for index, weight in self._minibatches(valid, iteration, epoch):
                self._means.add(self._step(batch.take(index), weight))
        metrics = self._means.take()
        return {
            "entropy/action": -metrics["train/entropy_loss"],
            **metrics,
            "train/entropy_coef": self.entropy_coef.tensor,
            "train/learning_rate": self.learning_rates["actor"].tensor,
        }

    def faults(self) -> dict[str, Tensor]:
        """0-d bool per checked tensor: whether it was not finite in the latest `learn`."""
        return dict(zip(self._checked, self._broken.unbind(), strict=True))

    def _minibatches(self, valid: Tensor, iteration: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Indices of columns, and the weights of their rows in the mean; every column once, in minibatches of one size.

        Where the columns don't divide evenly, some minibatches end with a filler that weighs nothing.
        """
        count, columns = self.settings.minibatches, valid.shape[1]
        size = -(-columns // count)
        full = columns - count * (size - 1)
        order = torch.randperm(columns, generator=generator(self.seed, Stream.PERMUTATION, iteration, epoch))
        whole, short = order[: full * size].view(full, size), order[full * size :].view(count - full, size - 1)
        index = torch.cat((whole, pad(short, (0, 1)))).to(valid.device)
        weight = valid[:, index].float()
        weight[:, full:, -1] = 0.0
        weight = weight / weight.sum((0, 2), keepdim=True).clamp(min=1.0)
        yield from zip(index.unbind(), weight.transpose(0, 1).flatten(1).unbind(), strict=True)

    def _step(self, batch: Batch, weight: Tensor) -> Tensor:
        """One minibatch: loss, gradient, clip, Adam. Returns the metrics as a vector."""
        for flat in self.flat.values():
            flat.gradient.zero_()
        loss, means = self._loss(batch, weight)
        loss.backward()
        groups = self.settings.groups
        norms = [clip_(flat.gradient, groups[name].max_grad_norm) for name, flat in self.flat.items()]
        checked = torch.stack((loss.detach(), *norms))
        self._broken.logical_or_(~checked.isfinite())
        self._blocked.copy_(torch.maximum(self._blocked, self._broken.any()))
        self.optimizer.step()
        return torch.cat((means, checked))

    def _loss(self, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        actor_features, critic_features = self.policy.features(batch.observation, self._state(batch), batch.begins)
        new = self.policy.action_head.evaluate(actor_features, batch.action, batch.action_mask)
        actor = self.objective(new, batch)
        old, clip = (None, None) if self.value_clip is None else (batch.old_value, self.value_clip.tensor)
        critic = self.policy.value_head.loss_normalized(
            critic_features, batch.target, task=batch.task, old=old, clip=clip
        )
        # One matrix-vector product takes all the means at once.
        terms = torch.stack((actor.loss, critic, new.entropy)) @ weight
        loss = terms @ self._loss_weights
        with torch.no_grad():
            diagnostics = torch.stack((actor.approx_kl, actor.clip_fraction, *new.entropies)) @ weight
            means = torch.cat((terms[:2], -terms[2:], diagnostics))
        return loss, means

    @torch.no_grad()
    def _state(self, batch: Batch) -> State:
        """What the network remembers at the first step that is learned from; burn-in passes no gradient."""
        burn_in = batch.burn_in
        if burn_in is None:
            return batch.state
        after = self.policy.remember(burn_in.observation, batch.state, burn_in.begins)
        skipped = burn_in.skipped.unsqueeze(-1)
        return tree_map(lambda kept, new: torch.where(skipped, kept, new), batch.state, after)

    def state_dict(self) -> dict[str, Tensor]:
        """Adam's state, one entry per group and moment."""
        return self.optimizer.moments()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        restore(self.optimizer.moments(), state, "the optimiser")
