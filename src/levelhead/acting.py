"""Chooses the actions of a rollout."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from levelhead.networks import Policy, State
from levelhead.tree import Tree, tree_leaves, tree_map

Stretch = Callable[[int, Callable[[Any], Any]], tuple[int, Any]]
"""Takes a step's number and what steps the environments (`VecEnv.plain_step`), and goes on until an answer needs more
than writing down. Returns that step's number and its answer, or after the last step T and None."""


class Actor:
    """The actor in a stepping loop, in torch.

    Args:
        policy: acts.
        engine: what chooses, and why, for people to read.
        arrays: hand out actions as NumPy arrays.

    Attributes:
        state: what the policy remembers after the steps so far.
        choices: the actions of the rollout as they were drawn, and their distributions' parameters, leaves
            `[T, N, ...]`; the next rollout overwrites them.
    """

    def __init__(self, policy: Policy, engine: str = "torch", *, arrays: bool = False) -> None:
        self.policy = policy
        self.engine = engine
        self.arrays = arrays
        self.state = policy.network.initial_state(0)
        self.choices: tuple[Tree, Tree] | None = None

    def start(self, observation: Tree, begins: Tensor, noise: Tree, state: State) -> None:
        """A new rollout.

        Args:
            observation: `[T, N, ...]` or longer; each row is filled when its step is taken.
            begins: bool, of the same rows: whether an episode begins.
            noise: of the action head, `[T, N, ...]`.
            state: what is remembered before the first step.
        """
        self._observation, self._begins, self._noise, self.state = observation, begins, noise, state

    def __call__(self, t: int, mask: Tree | None) -> Tree:
        """The actions of step t, as the environments take them.

        Args:
            t: counted from 0, without gaps.
            mask: what is legal, `[N, ...]`; None where everything is.
        """
        head = self.policy.action_head
        x = self.policy.reader(_row(self._observation, t))
        features, self.state = self.policy.actor_features(x, self.state, self._begins[t : t + 1])
        choice = head.sample(features, _row(self._noise, t), mask)
        if self.choices is None:
            self._make_room(choice, len(tree_leaves(self._noise)[0]))
        for row, x in zip(self._rows[t], tree_leaves(choice), strict=True):
            row.copy_(x)
        action = head.to_environment(choice[0])
        return tree_map(lambda x: x.cpu().numpy(), action) if self.arrays else action

    def stretch(self, rows: Sequence[Tensor]) -> Stretch | None:  # noqa: ARG002  # torch takes each by itself
        """Steps of the rollout that was started, several at a time; None where each has to be asked for.

        Args:
            rows: that observations, rewards, terminations and truncations are written to.
        """
        return None

    def _make_room(self, choice: tuple[Tree, Tree], steps: int) -> None:
        """Room for so many choices like the given one."""
        self.choices = tree_map(lambda x: x.new_empty(steps, *x.shape), choice)
        self._rows = list(zip(*(x.unbind() for x in tree_leaves(self.choices)), strict=True))


def _row(tree: Tree, t: int) -> Tree:
    return tree_map(lambda x: x[t], tree)
