"""What the trainer asks of a batch of environments."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from levelhead.tree import Tree, tree_map


class Step(NamedTuple):
    """What N environments answer to N actions. Tensors may be views of buffers that the next step overwrites."""

    observation: Tree
    """`[N, ...]`, what the next action is chosen on: where an episode has been reset, the next one's first."""
    reward: Tensor
    """`[N]`."""
    terminated: Tensor
    """`[N]` bool: the episode reached a real end; nothing follows."""
    truncated: Tensor
    """`[N]` bool: the episode was cut short, by a time limit say; something would have followed."""
    valid: Tensor | None = None
    """`[N]` bool: False where the environment was only being reset and the action was ignored. None: all valid."""
    final_observation: Tree | None = None
    """`[N, ...]`: in the rows of episodes that just ended, their last observation; other rows repeat `observation`.
    None: `observation` is the true successor in every row. Tensors that are given at every step, so that nobody need
    wait for a device to know whether an episode ended, take as much memory as a rollout's observations meanwhile."""


def joined(steps: Sequence[Step]) -> Step:
    """What several batches of environments answered, side by side."""
    valid = final = None
    if any(step.valid is not None for step in steps):
        valid = torch.cat(
            [torch.ones_like(s.terminated, dtype=torch.bool) if s.valid is None else s.valid for s in steps]
        )
    if any(step.final_observation is not None for step in steps):
        finals = [s.observation if s.final_observation is None else s.final_observation for s in steps]
        final = tree_map(lambda *xs: torch.cat(xs), *finals)
    return Step(
        tree_map(lambda *xs: torch.cat(xs), *(step.observation for step in steps)),
        torch.cat([step.reward for step in steps]),
        torch.cat([step.terminated for step in steps]),
        torch.cat([step.truncated for step in steps]),
        valid,
        final,
    )


class ArrayStep(NamedTuple):
    """`Step` in NumPy arrays."""

    observation: Tree
    reward: npt.NDArray[Any]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_] | None = None
    final_observation: Tree | None = None

    def tensors(self) -> Step:
        """The same, sharing memory."""
        return Step._make(None if part is None else tree_map(torch.from_numpy, part) for part in self)


class EnvState(NamedTuple):
    """All that decides how environments go on, their random generators included."""

    tensors: dict[str, Tensor]
    values: Any = None
    """Whatever JSON can hold."""


class VecEnv(ABC):
    """N environments with common spaces, stepped together.

    Attributes:
        num_envs: N.
        observation_space, action_space: of a single environment.
        tasks: names of the tasks that they play; empty where there is one alone. Values, their statistics and the scale
            of advantages are kept apart by task.
        task: `[N]` int64, the task that each environment is playing now; it may change with a new episode. None where
            there is one alone.
        action_mask: what is legal now, bool: `[N, choices]`, or a dict of these by the paths of an action's parts, as
            `ActionHead.legal` of the policy's head takes it. True throughout in rows whose action will be ignored.
            None, before and after every step, where everything is legal always.
        running: how they are run, for people to read.
        arrays: whether there is `step_arrays`, and it is what they would rather be asked.

    Observations and actions are tensors, or tuples and dicts of tensors as the spaces nest them.
    """

    num_envs: int
    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    tasks: tuple[str, ...] = ()
    task: Tensor | None = None
    action_mask: Tree | None = None
    arrays: bool = False
    running: str = ""

    @property
    def restarts(self) -> int | None:
        """How often what runs them had to be started anew; None where that doesn't happen."""
        return None

    @abstractmethod
    def reset(self, seed: int) -> Tree:
        """Starts new episodes everywhere, seeded by one number; the first observations, `[N, ...]`."""

    def reset_shards(self, seeds: Sequence[int]) -> Tree:
        """The same with a seed for each of the equal parts that they come in; here there is one part."""
        (seed,) = seeds
        return self.reset(seed)

    @abstractmethod
    def step(self, action: Tree) -> Step:
        """Applies `[N, ...]` actions that lie within the action space, on the policy's device."""

    def step_arrays(self, action: Tree) -> ArrayStep:
        """`step` without tensors, for environments whose `arrays` is True: they are spared the way there and back.

        Args:
            action: `[N, ...]` arrays that lie within the action space.
        """
        raise NotImplementedError(f"{type(self).__name__}.arrays is {self.arrays}")

    def send(self, action: Tree) -> None:
        """Hands over actions, as `step_arrays` takes them where `arrays` is True, and as `step` does otherwise; those
        that can step by themselves meanwhile do."""
        self._sent = action

    def receive(self) -> "Step | ArrayStep":
        """What comes of the actions that were sent."""
        return self.step_arrays(self._sent) if self.arrays else self.step(self._sent)

    def plain_step(self) -> Callable[[Any], Any] | None:
        """What steps them for now, from arrays of actions to arrays of observations, rewards, ends, cuts, and infos.

        Whoever calls it spares the way through `send`, `receive` and `step_arrays`, and all that is done there, until
        an episode ends or there are infos; `read_plain` has to hear of that answer. None where there is no such thing.
        """
        return None

    def read_plain(self, answer: Any) -> ArrayStep:
        """What `step_arrays` would have said in place of the answer that `plain_step` gave."""
        raise NotImplementedError(f"{type(self).__name__} gives no such answers")

    def get_state(self) -> EnvState | None:
        """Where they are in their episodes; None where they can't tell, and new ones begin at every checkpoint."""
        return None

    def set_state(self, state: EnvState) -> None:
        """Goes on from there, with the same masks and tasks."""
        raise NotImplementedError(f"{type(self).__name__} cannot go on from a state")

    @abstractmethod
    def close(self) -> None:
        """Releases what the environments hold."""


def send_tensors(env: VecEnv, action: Tree) -> None:
    """`env.send` of tensors, whichever it would rather be given."""
    env.send(tree_map(lambda x: x.cpu().numpy(), action) if env.arrays else action)


def receive_tensors(env: VecEnv) -> Step:
    """What `env.receive` answers, in tensors."""
    step = env.receive()
    return step.tensors() if isinstance(step, ArrayStep) else step
