"""The losses of actor and critic on a minibatch."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from levelhead.distributed import total
from levelhead.losses import approximate_kl, log_ratio
from levelhead.networks import Policy, State
from levelhead.numerics import moments, pick, standardize
from levelhead.objectives import Objective
from levelhead.optimizer import ACTING, GROUPS
from levelhead.rollout import Batch, by_task
from levelhead.schedules import Coefficient, Schedule
from levelhead.tree import Tree, tree_map


@dataclass(frozen=True)
class CriterionSettings:
    """What the losses consist of."""

    entropy_coef: Schedule
    value_coef: Schedule
    value_clip: Schedule | None
    """Width of the value clip on the normalised axis; None for no clip."""
    value_huber: Schedule | None = None
    """Error on the normalised axis from which the value loss grows in proportion to it; None for the square."""
    standardize: bool = False
    """Whether advantages are standardised once more, over each minibatch."""


class Terms(NamedTuple):
    """Of one minibatch."""

    loss: Tensor
    """0-d."""
    means: Tensor
    """Metrics, in the order of the names."""
    kl: Tensor | None = None
    """0-d, KL(old || new), differentiable; None where it wasn't asked for."""


class Opinion(NamedTuple):
    """Of S steps in C columns, `[S, C, ...]`."""

    log_prob: Tensor
    """Of the batch's actions."""
    value: Tensor
    """On the normalised axis, each of its row's task."""
    parameters: Tree
    """Of the distribution of actions."""


class Loss(NamedTuple):
    """One loss, and what it is for."""

    of: Callable[[Batch, Tensor], Terms]
    """A minibatch and the weights of its rows in the mean, `[S * len(index)]`."""
    names: tuple[str, ...]
    """Of its metrics."""
    groups: tuple[str, ...]
    """Of the parameters that it trains."""


class Criterion:
    """The weighted sum of policy loss, negative entropy and value loss, together or by itself.

    Args:
        policy: whose losses.
        objective: what the actor maximises.
        settings: as they say.
        kl: whether the divergence from the policy that acted is computed; the batches must then hold its parameters.

    Attributes:
        actor, critic, joint: the losses. In that of the critic alone, what it shares with the actor gets no gradient.
    """

    def __init__(self, policy: Policy, objective: Objective, settings: CriterionSettings, kl: bool) -> None:
        self.policy = policy
        self.objective = objective
        self.kl = kl
        device = policy.device
        self.entropy_coef = Coefficient(settings.entropy_coef, device)
        self.value_coef = Coefficient(settings.value_coef, device)
        self.value_clip = None if settings.value_clip is None else Coefficient(settings.value_clip, device)
        self.value_huber = None if settings.value_huber is None else Coefficient(settings.value_huber, device)
        self.standardize = settings.standardize
        actor_names = (
            "train/policy_gradient_loss",
            "train/entropy_loss",
            "train/approx_kl",
            *(f"train/{name}" for name in objective.metric_names),
            *(f"entropy/{part}" for part in policy.action_head.names),
            *(("train/kl",) if kl else ()),
        )
        critic_names = ("train/value_loss",)
        self.actor = Loss(self._actor_alone, actor_names, ACTING)
        self.critic = Loss(self._critic_alone, critic_names, ("critic",))
        self.joint = Loss(self._both, (*actor_names, *critic_names), GROUPS)

    def advance(self, progress: float) -> None:
        """Moves every schedule to `progress`, the share of training done."""
        for coefficient in (self.entropy_coef, self.value_coef, self.value_clip, self.value_huber):
            if coefficient is not None:
                coefficient.advance(progress)
        self.objective.advance(progress)

    def _both(self, batch: Batch, weight: Tensor) -> Terms:
        actor_features, critic_features = self.policy.features(batch.observation, self.state(batch), batch.begins)
        actor = self._actor(actor_features, batch, weight)
        critic = self._critic(critic_features, batch, weight)
        return Terms(actor.loss + critic.loss, torch.cat((actor.means, critic.means)), actor.kl)

    def _actor_alone(self, batch: Batch, weight: Tensor) -> Terms:
        features, _ = self.policy.actor_features(batch.observation, self.state(batch), batch.begins)
        return self._actor(features, batch, weight)

    def _critic_alone(self, batch: Batch, weight: Tensor) -> Terms:
        features = self.policy.critic_features_alone(batch.observation, self.state(batch), batch.begins)
        return self._critic(features, batch, weight)

    def whole(self, batch: Batch, valid: Tensor) -> Terms:
        """The actor's, over all valid rows of `[S, C]` at once: this rank's part of sums over all."""
        weight = valid.flatten().to(batch.advantage.dtype) / total(valid.sum()).clamp(min=1)
        return self._actor_alone(batch.rows(), weight)

    @torch.no_grad()
    def opinion(self, batch: Batch) -> Opinion:
        """What policy and critic say of a batch now."""
        rows = batch.rows()
        actor, critic = self.policy.features(rows.observation, self.state(rows), rows.begins)
        new = self.policy.action_head.evaluate(actor, rows.action, rows.action_mask)
        z = pick(self.policy.value_head.forward_normalized(critic), rows.task)
        # Some are the policy's own tensors, and would move with it.
        parameters = tree_map(lambda x: x.unflatten(0, batch.begins.shape).clone(), new.parameters)
        return Opinion(new.log_prob.view_as(batch.begins), z.view_as(batch.begins), parameters)

    def _actor(self, features: Tensor, batch: Batch, weight: Tensor) -> Terms:
        head = self.policy.action_head
        if self.standardize:
            batch = self._standardized(batch, weight > 0)
        new = head.evaluate(features, batch.action, batch.action_mask)
        kl = head.kl(batch.parameters, new.parameters) if self.kl else None
        answer = self.objective(new, batch, kl)
        # Matrix-vector products take many means at once.
        terms = torch.stack((answer.loss, new.entropy)) @ weight
        with torch.no_grad():
            divergence = () if kl is None else (kl,)
            sampled = approximate_kl(log_ratio(new.log_prob, batch.log_prob))
            reported = (sampled, *answer.metrics, *new.entropies, *divergence)
            means = torch.cat((terms[:1], -terms[1:], torch.stack(reported) @ weight))
        return Terms(terms[0] - self.entropy_coef.tensor * terms[1], means, None if kl is None else kl @ weight)

    def _critic(self, features: Tensor, batch: Batch, weight: Tensor) -> Terms:
        old, clip = (None, None) if self.value_clip is None else (batch.old_value, self.value_clip.tensor)
        huber = None if self.value_huber is None else self.value_huber.tensor
        loss = self.policy.value_head.loss_normalized(
            features, batch.target, task=batch.task, old=old, clip=clip, huber=huber
        )
        mean = loss @ weight
        return Terms(self.value_coef.tensor * mean, mean.detach().unsqueeze(0))

    @torch.no_grad()
    def _standardized(self, batch: Batch, valid: Tensor) -> Batch:
        """The batch with advantages of mean 0 and standard deviation 1, each task by itself."""
        scaled = torch.zeros_like(batch.advantage)
        for mask in by_task(valid, batch.task, self.policy.value_head.output_dim):
            of = moments(batch.advantage.reshape(-1, 1), mask.reshape(-1, 1), total).take(0)
            scaled = torch.where(mask, standardize(batch.advantage, mask, of, of.magnitude), scaled)
        return replace(batch, advantage=scaled)

    @torch.no_grad()
    def state(self, batch: Batch) -> State:
        """What the network remembers at the first step that is learned from; burn-in passes no gradient."""
        burn_in = batch.burn_in
        if burn_in is None:
            return batch.state
        after = self.policy.remember(burn_in.observation, batch.state, burn_in.begins)
        skipped = burn_in.skipped.unsqueeze(-1)
        return tree_map(lambda kept, new: torch.where(skipped, kept, new), batch.state, after)
