"""Watches the metrics of a training for what looks wrong, and says, once, what to try.

docs/watches.md has the table, and docs/log.md what healthy runs showed. False alarms are worse than silence: every
bound lies far beyond those.
"""

import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym

from levelhead.config import Config
from levelhead.oscillation import OscillationWatch

KL = 0.2
"""Mean of `train/approx_kl` over an iteration; PPO's clip is meant for some hundredths."""
CLIPPED = 100.0
"""A gradient's length, as a multiple of what it is scaled down to."""
ENTROPY_LEFT = 0.01
"""Share of the entropy at first that means that a choice has stopped being one."""
EARLY = 0.2
"""Share of the training in which that is too soon."""
NOISIER = 2.0
"""By which the entropy of a real number has grown where its noise is more than seven times what it was."""
SCALE_CHANGE = 1e3
"""Factor between the smallest and the largest `value/std` of a few iterations."""
DEAD = 0.5
"""Share of hidden units that answer the same to everything."""

Metrics = Mapping[str, float]


class Watch(ABC):
    """One thing to look at."""

    @abstractmethod
    def __call__(self, metrics: Metrics, steps: int) -> str | None:
        """Takes the metrics of an iteration of so many steps; what there is to say of it by now."""


class Sustained(Watch):
    """Speaks once where a metric looks wrong more often than not.

    Args:
        metric: its name.
        wrong: whether a value is.
        times: among the latest twice as many, iterations without the metric aside.
        advice: what it means, and what to try.
    """

    def __init__(self, metric: str, wrong: Callable[[float], bool], times: int, advice: str) -> None:
        self.metric = metric
        self.wrong = wrong
        self.times = times
        self.advice = advice
        self._latest = deque[bool](maxlen=2 * times)
        self._told = False

    def __call__(self, metrics: Metrics, steps: int) -> str | None:  # noqa: ARG002  # iterations are what counts
        value = metrics.get(self.metric)
        if value is None or self._told:
            return None
        self._latest.append(self.wrong(value))
        self._told = sum(self._latest) >= self.times
        return f"{self.metric} is {value:.3g}, and has often been so: {self.advice}" if self._told else None


class Entropy(Watch):
    """Speaks once where a policy has stopped exploring early on, or its noise keeps growing.

    Args:
        space: of actions; those that are real numbers have another kind of entropy, and mixed ones none to speak of.
        total_steps: of the training.
    """

    def __init__(self, space: gym.Space[Any] | None, total_steps: int) -> None:
        self.discrete = isinstance(space, gym.spaces.Discrete | gym.spaces.MultiDiscrete | gym.spaces.MultiBinary)
        self.numbers = math.prod(space.shape) if isinstance(space, gym.spaces.Box) else 0
        self.total_steps = total_steps
        self._first: float | None = None
        self._steps = 0
        self._row = 0
        self._told = False

    def __call__(self, metrics: Metrics, steps: int) -> str | None:
        entropy = metrics.get("entropy/action")
        self._steps += steps
        if entropy is None or self._told:
            return None
        if self._first is None:
            self._first = entropy
        collapsed = self.discrete and entropy < ENTROPY_LEFT * self._first and self._steps < EARLY * self.total_steps
        noisy = self.numbers > 0 and entropy > self._first + NOISIER * self.numbers
        self._row = self._row + 1 if collapsed or noisy else 0
        self._told = self._row == 5
        if not self._told:
            return None
        said = f"entropy/action is {entropy:.3g} for {self._first:.3g} at first: "
        if collapsed:
            return (
                said + "the policy has all but stopped exploring; try --ppo.entropy-coef 0.01, or a lower learning rate"
            )
        return said + "its noise keeps growing; try a smaller --ppo.entropy-coef, or --action.log-std-bounds -5 1"


class Scale(Watch):
    """Speaks once where the scale of values changes by orders of magnitude within a few iterations."""

    WINDOW = 20

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}
        self._told = False

    def __call__(self, metrics: Metrics, steps: int) -> str | None:  # noqa: ARG002  # iterations are what counts
        for name, std in metrics.items():
            if name != "value/std" and not name.startswith("value/std/"):
                continue
            seen = self._seen.setdefault(name, deque(maxlen=self.WINDOW))
            if std != 1.0:  # which it is until there is a scale
                seen.append(std)
            recent = list(seen)
            if not self._told and len(recent) == self.WINDOW and max(recent) > SCALE_CHANGE * min(recent):
                self._told = True
                return (
                    f"{name} went from {recent[0]:.3g} to {recent[-1]:.3g} within {self.WINDOW} iterations: does the"
                    " reward grow without bound, or is it in several units? Try a lower --ppo.gamma, a longer"
                    " rollout, or one task per unit"
                )
        return None


def build_watches(config: Config, space: gym.Space[Any] | None) -> Sequence[Watch | OscillationWatch]:
    """All there are for a run."""
    optimizer = config.optimizer
    limits = {"actor": optimizer.actor.max_grad_norm, "critic": optimizer.critic.max_grad_norm}
    clipped = [
        Sustained(
            f"grad/{name}_norm",
            lambda norm, most=CLIPPED * (limit or optimizer.max_grad_norm): norm > most,
            20,
            "next to nothing of its length is left after clipping; look for rare huge targets or inputs"
            " (--network.normalize-observation), or try a higher --optimizer.max-grad-norm",
        )
        for name, limit in limits.items()
    ]
    return (
        OscillationWatch(),
        Sustained(
            "train/approx_kl",
            lambda kl: kl > KL,
            10,
            "the policy moves further in an iteration than what it learned from can tell of; try a lower"
            " --optimizer.learning-rate, fewer --ppo.epochs, or --ppo.kl-limit 0.02",
        ),
        Entropy(space, config.total_steps),
        *clipped,
        Sustained(
            "grad/actor_norm",
            lambda norm: norm == 0,
            20,
            "the actor learns nothing; are all rewards the same, or does nothing that the policy does matter?",
        ),
        Scale(),
        Sustained(
            "health/dead_units",
            lambda share: share > DEAD,
            3,
            "these hidden units answer the same to every observation; try a lower --optimizer.learning-rate,"
            " --network.activation tanh or elu, or --network.normalize-observation",
        ),
    )
