"""Reads a rollout's observations for the critic's head."""

from torch import Tensor

from levelhead.networks import Policy, State
from levelhead.tree import Tree, tree_map


class Critic:
    """The critic below its head, in torch.

    Args:
        policy: whose it is.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def start(self) -> None:
        """A new rollout begins; parameters may have moved since the last one."""

    def __call__(self, observation: Tree, state: State, begins: Tensor) -> tuple[Tensor, State]:
        """What the head reads, `[T, N, D]`, and the state after the last step.

        Args:
            observation: `[T, N, ...]`, as the environments give it.
            state: before the first step.
            begins: bool `[T, N]`, whether an episode begins.
        """
        x = tree_map(lambda part: part.flatten(0, 1), self.policy.reader(observation))
        features, state = self.policy.critic_features(x, state, begins)
        return features.unflatten(0, begins.shape), state
