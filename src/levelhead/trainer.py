"""The training loop: an iterator, so that a `for` statement replaces callbacks."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from levelhead.advantages import AdvantageScaling, measured
from levelhead.collector import Collector
from levelhead.distributed import copy_from_first, digest, gathered_values, largest, leave_word, rank, ranks, total
from levelhead.envs import EnvState
from levelhead.episodes import Episode
from levelhead.errors import LevelheadError, RankError, TrainingFault
from levelhead.estimators import Estimator
from levelhead.health import Evidence, dead_units, preservation_error, value_metrics
from levelhead.learner import Learner
from levelhead.metrics import to_host
from levelhead.networks import Policy
from levelhead.revaluation import next_value, revalued, weighted
from levelhead.rewards import RewardTransform
from levelhead.rollout import Batch, Rollout, before_columns, chunked
from levelhead.schedules import Schedule
from levelhead.tree import Tree, tree_map

LOOK_EVERY = 10
"""Iterations from one look at hidden units to the next."""


@dataclass(frozen=True)
class TrainerSettings:
    """What happens between collecting and learning."""

    total_steps: int
    """Valid environment steps, rounded up to whole iterations."""
    beta: Schedule | None
    """Retention of the value head's statistics; None leaves it to the head."""
    chunk: int
    """Steps that are learned from in order, in one piece; 1 without memory."""
    burn_in: int = 0
    """Steps before each piece, but the first, that bring its memory up to date."""
    overlap: bool = False
    """Whether the next rollout is played while the last one is learned from."""


@dataclass(frozen=True)
class Iteration:
    """One turn of collect and learn."""

    iteration: int
    """Counted from 1."""
    step: int
    """Valid environment steps so far."""
    steps: int
    """Those of this iteration."""
    metrics: dict[str, float]


class Trainer:
    """`for iteration in trainer:` trains until `total_steps`; leave the loop whenever you like, and come back to it.

    Each turn collects a rollout, moves the value head's statistics to its targets, learns, and only then moves the
    observation statistics, so that acting and learning see the same inputs.

    Attributes:
        iteration, step: so many of each are done.
        failed: whether a rollout could not be collected, on some rank; the state is that from before it.

    Raises:
        TrainingFault: (while iterating) something was not finite. No optimiser step was taken on it, and the state is
            again that from before the iteration, but for the rollouts that an auxiliary phase had kept. Or a rollout
            could not be collected: environments' answers don't fit, leave nothing legal, or stay away too often.
    """

    def __init__(
        self,
        policy: Policy,
        collector: Collector,
        learner: Learner,
        estimator: Estimator,
        advantage: AdvantageScaling,
        rewards: RewardTransform | None,
        settings: TrainerSettings,
    ) -> None:
        self.policy = policy
        self.collector = collector
        self.learner = learner
        self.estimator = estimator
        self.advantage = advantage
        self.rewards = rewards
        self.settings = settings
        self.iteration = 0
        self.step = 0
        self.failed = False
        common = self._common()
        copy_from_first(common)
        # All of it is written in place, always.
        self._changing = [*common, *(() if rewards is None else (rewards.returns,))]

    def __iter__(self) -> Iterator[Iteration]:
        return self

    @property
    def scale_promise(self) -> str:
        """What a change of the reward's scale does to this training, in a sentence."""
        head, rewards = self.policy.value_head, self.rewards
        if rewards is not None and not rewards.normalize:
            outside = "clipped rewards"
        elif rewards is not None or (head.scale_free and self.advantage.scale_free):
            return "rewards times any power of two train the same policy, bit for bit"
        else:
            outside = type(head).__name__ if self.advantage.scale_free else "unscaled advantages"
        return f"the outcome depends on the reward's scale, through {outside}"

    @property
    def engines(self) -> str:
        """How environments are run, what acts and what takes the gradient steps, in a sentence."""
        running, acts, learns = self.collector.env.running, self.collector.actor.engine, self.learner.engine
        engines = f"actions and gradient steps by {acts}" if acts == learns else f"actions by {acts}; steps by {learns}"
        return f"environments {running}; {engines}" if running else engines

    @property
    def done(self) -> bool:
        """Whether `total_steps` have been taken."""
        return self.step >= self.settings.total_steps

    def __next__(self) -> Iteration:
        if self.done:
            raise StopIteration
        started = time.perf_counter()
        progress = self.step / self.settings.total_steps
        self.learner.advance(progress, self.iteration)
        if self.settings.beta is not None:
            self.policy.value_head.beta = self.settings.beta(progress)
        leave_word(f"collecting iteration {self.iteration + 1}")
        rollout, ended = self._collect()
        collected = time.perf_counter()
        steps = total(rollout.valid.sum())
        if self.settings.overlap and self.step + int(steps) < self.settings.total_steps:
            self.collector.ahead(self.iteration + 1)

        before = [x.clone() for x in self._changing]
        evidence, metrics = self._learn(rollout)
        values = to_host({"steps": steps, **metrics})
        finished = time.perf_counter()

        if values.pop("broken"):
            when, suspects = f"in iteration {self.iteration + 1}", self.learner.optimizer.suspects()
            fault = evidence.diagnose(when, self.learner.faults(), suspects)
            for now, then in zip(self._changing, before, strict=True):
                now.copy_(then)
            self.learner.forget()
            self.collector.settle()
            raise TrainingFault(f"{fault}; stopped before the optimiser step that would have used it")
        self.collector.episodes.record(ended)
        taken = int(values.pop("steps"))
        self.step += taken
        self.iteration += 1
        values = {name: x for name, x in values.items() if math.isfinite(x)}
        timing = {
            "time/fps": taken / (finished - started),
            "time/collect": collected - started,
            "time/learn": finished - collected,
        }
        restarts = self.collector.env.restarts
        counted = {} if restarts is None else {"health/env_restarts": float(total(torch.tensor(restarts)))}
        metrics = {**self.collector.episodes.metrics(), **values, **counted, **timing}
        return Iteration(self.iteration, self.step, taken, metrics)

    def _collect(self) -> tuple[Rollout, list[Episode]]:
        """The next rollout, and the episodes that ended in it on all ranks, in order.

        Raises:
            TrainingFault: it could not be collected, here or on another rank; names that, and the reason.
            Exception: what an environment here raised, once the other ranks know of it.
        """
        rollout, ended, failure = None, list[Episode](), None
        try:
            rollout = self.collector.collect(self.iteration)
            ended = self.collector.ended()
        except RankError:  # then nobody can be told
            raise
        except Exception as error:
            failure = error
            self.collector.settle()
        leave_word(f"learning in iteration {self.iteration + 1}")
        told = gathered_values((_reason(failure), ended))
        self.failed = any(reason is not None for reason, _ in told)
        if failure is not None and not isinstance(failure, LevelheadError):
            raise failure
        for i, (reason, _) in enumerate(told):
            if reason is not None:
                raise TrainingFault(f"{reason}; collecting iteration {self.iteration + 1} on rank {i}") from failure
        assert rollout is not None
        return rollout, sorted((episode for _, part in told for episode in part), key=lambda episode: episode.step)

    @torch.no_grad()
    def _learn(self, rollout: Rollout) -> tuple[Evidence, dict[str, Tensor]]:
        """Everything between two rollouts, without waiting for the device: the metrics, among them whether something
        was `broken`, and what tells more about that."""
        head, valid = self.policy.value_head, rollout.valid
        masks = rollout.masks(head.output_dim)
        given = rollout
        if self.rewards is not None:
            rollout = self.rewards(given)
        advantage, target = self.estimator(rollout, masks)
        of = measured(advantage, target, rollout.value, masks)
        evidence = Evidence(given, advantage, target)
        healthy = of.finite & ~largest(evidence.hidden)
        had_scale = head.scaled.clone()
        next_z = head.normalize(rollout.next_value, task=rollout.task) if self.estimator.refreshed else None
        head.observe_moments(of.target._replace(weight=of.target.weight * healthy))
        y = head.normalize(target, task=rollout.task)
        metrics = {
            "value/preservation_error": preservation_error(head, rollout, had_scale),
            **value_metrics(head, self.collector.env.tasks, of, masks, y),
        }

        def columns(tree: Tree) -> Tree:
            return tree_map(lambda x: chunked(x, self.settings.chunk), tree)

        observation = self.policy.reader(rollout.observation)
        batch = Batch(
            observation=columns(observation),
            action=columns(rollout.action),
            action_mask=None if rollout.action_mask is None else columns(rollout.action_mask),
            log_prob=columns(rollout.log_prob),
            advantage=columns(weighted(rollout, self.advantage(advantage, target, masks, of, head.std))),
            target=columns(y),
            old_value=columns(head.normalize(rollout.value, task=rollout.task)),
            begins=columns(rollout.begins),
            state=tree_map(lambda x: x.flatten(0, 1), rollout.state),
            parameters=columns(rollout.parameters) if self.learner.needs_kl else None,
            task=None if rollout.task is None else columns(rollout.task),
            burn_in=before_columns(observation, rollout.begins, self.settings.chunk, self.settings.burn_in),
        )

        def estimate(log_prob: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            assert next_z is not None
            today = replace(rollout, next_value=next_value(head, rollout, next_z, had_scale))
            now = revalued(head, today, log_prob, z)
            advantage, target = self.estimator(now, masks)
            of = measured(advantage, target, now.value, masks)
            scaled = self.advantage(advantage, target, masks, of, head.std, again=True)
            return columns(weighted(rollout, scaled)), columns(head.normalize(target, task=rollout.task))

        anew = estimate if self.estimator.refreshed else None
        with torch.enable_grad():
            metrics |= self.learner.learn(batch, columns(valid), healthy, self.iteration, anew)
        metrics["broken"] = broken = largest(self.learner.blocked)
        if self.iteration % LOOK_EVERY == 0:
            metrics["health/dead_units"] = total(dead_units(self.policy, rollout.observation)) / ranks()

        self.policy.reader.update(rollout.observation, valid, broken == 0, total)
        return evidence, metrics

    def _common(self) -> list[Tensor]:
        """All that learning changes, and that is the same on all ranks."""
        parts = (self.policy, self.learner, self.advantage, *(() if self.rewards is None else (self.rewards,)))
        return [x for part in parts for x in part.state_dict().values()]

    def require_equal(self) -> None:
        """Makes sure that all ranks have come to the same, bit for bit; they all must ask.

        Raises:
            RankError: it names the ranks that have not.
        """
        hashes = gathered_values(digest(self._common()) if ranks() > 1 else "")
        others = [i for i, other in enumerate(hashes) if other != hashes[0]]
        if others:
            raise RankError(f"after iteration {self.iteration} what ranks {others} have learned differs from rank 0's")

    def state_dict(self) -> dict[str, Any]:
        """Whatever changes during training, as tensors and JSON values."""
        episodes = self.collector.episodes
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.learner.state_dict(),
            "advantage": self.advantage.state_dict(),
            "rewards": {} if self.rewards is None else self.rewards.state_dict(),
            "progress": {"iteration": self.iteration, "step": self.step, "episodes": episodes.state_dict()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict`, and from what was `under_way`, whose tensors are `environment` here, where that
        was kept too; environments start new episodes otherwise, as they did when the checkpoint was written."""
        self.policy.load_state_dict(state["policy"])
        self.learner.load_state_dict(state["optimizer"])
        self.advantage.load_state_dict(state["advantage"])
        if self.rewards is not None:
            self.rewards.load_state_dict(state["rewards"])
        progress = state["progress"]
        self.iteration, self.step = progress["iteration"], progress["step"]
        self.collector.episodes.load_state_dict(progress["episodes"])
        self.restart_episodes()
        if (values := state.get("under_way")) is not None:
            if len(values) != ranks():
                raise ValueError(f"it holds the episodes of {len(values)} ranks, and there are {ranks()}")
            start = f"{rank()}/"
            own = {name.removeprefix(start): x for name, x in state["environment"].items() if name.startswith(start)}
            if self.rewards is not None:
                self.rewards.returns.copy_(own.pop("rewards"))
            self.collector.carry_on(EnvState(own, values[rank()]))

    def under_way(self) -> EnvState | None:
        """Where the episodes of all ranks are, tensors by rank and name, values by rank; None where environments cannot
        tell. All ranks must ask."""
        state = self.collector.under_way()
        if state is not None and self.rewards is not None:
            state.tensors["rewards"] = self.rewards.returns
        host = None if state is None else ({name: x.cpu() for name, x in state.tensors.items()}, state.values)
        parts = [part for part in gathered_values(host) if part is not None]
        if len(parts) < ranks():
            return None
        tensors = {f"{i}/{name}": x for i, (own, _) in enumerate(parts) for name, x in own.items()}
        return EnvState(tensors, [values for _, values in parts])

    def pass_checkpoint(self, under_way: EnvState | None) -> None:
        """Goes on as a run does that is resumed from a checkpoint which holds this."""
        if under_way is None:
            self.restart_episodes()
        else:
            self.learner.forget()

    def restart_episodes(self) -> None:
        """Starts new episodes everywhere, seeded by the iteration, so that a resumed run and one that went on agree."""
        self.collector.reset(self.iteration)
        self.learner.forget()
        if self.rewards is not None:
            self.rewards.reset()


def _reason(failure: Exception | None) -> str | None:
    """What other ranks are told of it; our own errors speak for themselves."""
    return None if failure is None else str(failure) if isinstance(failure, LevelheadError) else repr(failure)
