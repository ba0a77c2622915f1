"""Steps environments with the actor, and keeps what comes of it."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from levelhead.acting import Actor, Stretch
from levelhead.distributed import Cutoff
from levelhead.envs import ArrayStep, Step, VecEnv
from levelhead.errors import ConfigError
from levelhead.masks import require_legal
from levelhead.networks import State
from levelhead.rows import Rows
from levelhead.spaces import zeros
from levelhead.tree import Tree, tree_leaves, tree_map


@dataclass(frozen=True)
class Played:
    """T steps of N environments, `[T, N, ...]`; what was observed and where episodes begin have a row more."""

    observation: Tree
    begins: Tensor
    """Bool: whether an observation is an episode's first, or follows a step that is not valid."""
    reward: Tensor
    terminated: Tensor
    truncated: Tensor
    valid: Tensor
    task: Tensor | None
    mask: Tree | None
    choices: tuple[Tree, Tree]
    """Actions, and their distributions' parameters."""
    finals: dict[int, Tree]
    """By step, the final observations `[N, ...]` where an episode was truncated."""
    remembered: list[State]
    """Before the steps that are kept, and after the last one."""
    steps: int
    """So many were taken; the other rows repeat the last of these, and are not valid."""


class SteppingLoop:
    """Only the actor runs in it; the critic reads what was observed later, all at once.

    Args:
        env: the environments; whoever resets them calls `begin`.
        actor: chooses their actions.
        num_steps: T.
        kept: steps before which the memory's state is kept.
        cutoff: ends it early where other ranks have finished theirs; None where it is seen to its end.
    """

    def __init__(
        self, env: VecEnv, actor: Actor, num_steps: int, kept: Sequence[int] = (), cutoff: Cutoff | None = None
    ) -> None:
        self.env, self.actor, self.num_steps = env, actor, num_steps
        self._kept, self._cutoff = kept, cutoff
        self._head = actor.policy.action_head
        t, n, device = num_steps, env.num_envs, actor.policy.device

        def rows(name: str, dtype: torch.dtype) -> Rows:
            return Rows(torch.zeros(t, n, dtype=dtype, device=device), name)

        # One row more than steps: the last one is what the next rollout starts from.
        self.observation = zeros(env.observation_space, (t + 1, n), device)
        self._observed = tree_map(lambda x: Rows(x, "observation"), self.observation)
        self.begins = torch.zeros(t + 1, n, dtype=torch.bool, device=device)
        self._reward = rows("reward", torch.float32)
        self._terminated, self._truncated = rows("terminated", torch.bool), rows("truncated", torch.bool)
        self._valid = rows("valid", torch.bool)
        self._task = rows("task", torch.int64) if env.tasks else None
        self._mask: Tree | None = None
        self._masks_at_hand = True

    def begin(self, first: Tree) -> None:
        """Starts from what the environments, which have just been reset, let see.

        Raises:
            ConfigError: their masks or tasks are not what the policy knows.
        """
        self._write_observation(-1, first)
        self.begins[-1] = True
        n = self.env.num_envs
        if self.env.action_mask is not None:
            legal = self._head.legal(self.env.action_mask)
            if legal.shape != (n,):
                raise ConfigError(f"the environments' masks are for {tuple(legal.shape)}, not {n} rows")
            # Where reading one would mean to wait for a device, a rollout's are read at its end.
            self._masks_at_hand = legal.device.type == "cpu"
            if self._mask is None:
                steps, device = self.num_steps, self.begins.device
                self._mask = tree_map(
                    lambda x: Rows(x.new_zeros(steps, *x.shape, device=device), "action_mask"), self.env.action_mask
                )
        if self._task is not None:
            task = self.env.task
            if task is None or task.dtype != torch.int64 or task.shape != (n,):
                raise ConfigError(f"the environments' task is {task}; accepted: {n} numbers of torch.int64")
            self._require_known(task)

    def carried(self) -> dict[str, Tree]:
        """What the next rollout starts from, to be written to too."""
        return {"observation": tree_map(lambda x: x[-1], self.observation), "begins": self.begins[-1]}

    def play(self, iteration: int, noise: Tree, state: State) -> Generator[None, None, Played]:
        """Takes T steps; after each action it waits, until asked to go on, for others to use the time.

        Args:
            iteration: that the steps are for.
            noise: that actions are drawn with, `[T, N, ...]`.
            state: what is remembered before the first step.

        Returns:
            What the next call overwrites.
        """
        env, actor = self.env, self.actor
        self._valid.tensor.fill_(True)
        finals: dict[int, Tree] = {}
        remembered: list[State] = []

        tree_map(lambda x: x[0].copy_(x[-1]), self.observation)
        self.begins[0] = self.begins[-1]
        actor.start(self.observation, self.begins, noise, state)
        if self._cutoff is not None:
            self._cutoff.begin(iteration)
        stretch, t = self._stretch(), 0
        while t < self.num_steps:
            if t and self._cutoff is not None and self._cutoff.reached():
                steps = t
                break
            if self._task is not None and env.task is not None:
                self._task.write(t, env.task)
            if t in self._kept:
                remembered.append(actor.state)
            if stretch is not None and (plain := env.plain_step()) is not None:
                t, answer = stretch(t, plain)
                if t == self.num_steps:
                    continue
                step = env.read_plain(answer)
            else:
                env.send(actor(t, self._write_mask(t)))
                yield
                step = env.receive()
            self._write(t, step)
            if actor.policy.remembers:  # then it must know of ends at once
                self._write_begins(t, t + 1)
            # Whether a tensor holds any True is asked after the last step, so that the host need not wait at each.
            if step.final_observation is not None and (not actor.arrays or step.truncated.any()):
                finals[t] = tree_map(lambda x: torch.as_tensor(x).clone(), step.final_observation)
            t += 1
        else:
            steps = self.num_steps
            if self._cutoff is not None:
                self._cutoff.finish()
        self._write_begins(0, steps)
        self._repeat_last(steps)
        remembered += [actor.state] * (len(self._kept) + 1 - len(remembered))
        self._require_legal()
        if self._task is not None:
            self._require_known(self._task.tensor)
        if finals:
            cut = self._truncated.tensor.any(1).tolist()
            finals = {t: observation for t, observation in finals.items() if cut[t]}
        assert actor.choices is not None
        return Played(
            observation=self.observation,
            begins=self.begins,
            reward=self._reward.tensor,
            terminated=self._terminated.tensor,
            truncated=self._truncated.tensor,
            valid=self._valid.tensor,
            task=None if self._task is None else self._task.tensor,
            mask=self._masks(),
            choices=actor.choices,
            finals=finals,
            remembered=remembered,
            steps=steps,
        )

    def _stretch(self) -> Stretch | None:
        """Takes steps that are only written down; None where each needs more. Memories do, and no actor that has one
        answers any."""
        apart = self._cutoff is not None or self._task is not None or self._mask is not None
        if apart or not isinstance(self._observed, Rows):
            return None
        rows = (self._observed, self._reward, self._terminated, self._truncated)
        return self.actor.stretch([part.tensor for part in rows])

    def _write(self, t: int, step: Step | ArrayStep) -> None:
        self._write_observation(t + 1, step.observation)
        self._reward.write(t, step.reward)
        self._terminated.write(t, step.terminated)
        self._truncated.write(t, step.truncated)
        if step.valid is not None:
            self._valid.write(t, step.valid)

    def _write_begins(self, start: int, stop: int) -> None:
        """Where what was observed after these steps is an episode's first, or follows what is not valid."""
        terminated, truncated, valid = (x.tensor[start:stop] for x in (self._terminated, self._truncated, self._valid))
        self.begins[start + 1 : stop + 1] = terminated | truncated | ~valid

    def _repeat_last(self, steps: int) -> None:
        """Fills rows beyond so many steps with what can do no harm: nothing ends in them, and they are not valid."""
        if steps == self.num_steps:
            return
        repeated = [self.actor.choices, self._masks() or (), () if self._task is None else self._task.tensor]
        for x in tree_leaves((*repeated, self._reward.tensor)):
            x[steps:] = x[steps - 1]
        for x in tree_leaves((self.observation, self.begins)):  # which have a row more
            x[steps + 1 :] = x[steps]
        for rows in (self._terminated, self._truncated, self._valid):
            rows.tensor[steps:] = False

    def _write_observation(self, t: int, observation: Tree) -> None:
        try:
            if isinstance(self._observed, Rows) and isinstance(observation, np.ndarray):  # as it mostly is
                return self._observed.write(t, observation)
            tree_map(lambda rows, x: rows.write(t, x), self._observed, observation)
        except ValueError as error:
            space = self.env.observation_space
            raise ConfigError(f"the environments' observation does not fit {space}: {error}") from error

    def _write_mask(self, t: int) -> Tree | None:
        """What is legal at step t, kept for learning."""
        mask = self.env.action_mask
        if (mask is None) != (self._mask is None):
            raise ConfigError("the environments give action masks at some steps, and none at others")
        if mask is None:
            return None
        if self._masks_at_hand:
            require_legal(self._head.legal(mask), "environment")
        tree_map(lambda rows, x: rows.write(t, x), self._mask, mask)
        return tree_map(lambda rows: rows.tensor[t], self._mask)

    def _masks(self) -> Tree | None:
        return None if self._mask is None else tree_map(lambda rows: rows.tensor, self._mask)

    def _require_legal(self) -> None:
        """Refuses masks of the whole rollout that `_write_mask` left unread."""
        if self._mask is not None and not self._masks_at_hand:
            require_legal(self._head.legal(self._masks()).all(0), "environment")

    def _require_known(self, task: Tensor) -> None:
        known = len(self.env.tasks)
        if not bool(((task >= 0) & (task < known)).all()):
            raise ConfigError(
                f"the environments play tasks {task.unique().tolist()}; they named {known}: {self.env.tasks}"
            )


def play_in_turn(plays: Sequence[Generator[None, None, Played]]) -> Played:
    """Sees loops to their ends, one step of each at a time; what they leave, side by side."""
    if len(plays) == 1:
        return _see_to_its_end(plays[0])
    ended: dict[int, Played] = {}
    while len(ended) < len(plays):
        for k, play in enumerate(plays):
            if k not in ended:
                try:
                    next(play)
                except StopIteration as end:
                    ended[k] = end.value
    return _side_by_side([ended[k] for k in range(len(plays))])


def _see_to_its_end(play: Generator[None, None, Played]) -> Played:
    try:
        while True:
            next(play)
    except StopIteration as end:
        return end.value


def _side_by_side(parts: Sequence[Played]) -> Played:
    """Of as many steps each."""

    def along(dim: int, *trees: Tree) -> Tree:
        return tree_map(lambda *xs: torch.cat(xs, dim), *trees)

    def final(part: Played, t: int) -> Tree:
        return part.finals[t] if t in part.finals else tree_map(lambda x: x[t + 1], part.observation)

    tasks, masks = ([getattr(part, name) for part in parts] for name in ("task", "mask"))
    return Played(
        **{
            name: along(1, *(getattr(part, name) for part in parts))
            for name in ("observation", "begins", "reward", "terminated", "truncated", "valid", "choices")
        },
        task=None if tasks[0] is None else torch.cat(tasks, 1),
        mask=None if masks[0] is None else along(1, *masks),
        finals={t: along(0, *(final(part, t) for part in parts)) for t in sorted({t for p in parts for t in p.finals})},
        remembered=[along(0, *states) for states in zip(*(part.remembered for part in parts), strict=True)],
        steps=parts[0].steps,
    )
