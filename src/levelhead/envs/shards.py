"""Several parts of a run's environments in one process."""

from collections.abc import Sequence

import torch

from levelhead.envs.vec import Step, VecEnv, joined, receive_tensors, send_tensors
from levelhead.seeding import Stream, derive
from levelhead.tree import Tree, tree_map


class ShardedVecEnv(VecEnv):
    """Environments side by side that are seeded in parts, as if a process of its own stepped each part.

    Args:
        parts: of one kind and one size.
    """

    def __init__(self, parts: Sequence[VecEnv]) -> None:
        self.parts = parts
        first = parts[0]
        self.num_envs = sum(part.num_envs for part in parts)
        self.observation_space, self.action_space = first.observation_space, first.action_space
        self.tasks, self.running = first.tasks, first.running
        self._take_over()

    def reset(self, seed: int) -> Tree:
        return self.reset_shards([derive(seed, Stream.SHARD, k) for k in range(len(self.parts))])

    def reset_shards(self, seeds: Sequence[int]) -> Tree:
        first = [part.reset(seed) for part, seed in zip(self.parts, seeds, strict=True)]
        self._take_over()
        return tree_map(lambda *xs: torch.cat(xs), *first)

    def step(self, action: Tree) -> Step:
        self.send(action)
        return self.receive()

    def send(self, action: Tree) -> None:
        size = self.num_envs // len(self.parts)
        for k, part in enumerate(self.parts):
            send_tensors(part, tree_map(lambda x, start=k * size: x[start : start + size], action))

    def receive(self) -> Step:
        steps = [receive_tensors(part) for part in self.parts]
        self._take_over()
        return joined(steps)

    def _take_over(self) -> None:
        """Tasks and masks of now."""
        tasks = [part.task for part in self.parts if part.task is not None]
        masks = [part.action_mask for part in self.parts if part.action_mask is not None]
        self.task = torch.cat(tasks) if tasks else None
        self.action_mask = tree_map(lambda *xs: torch.cat(xs), *masks) if masks else None

    @property
    def restarts(self) -> int | None:
        counts = [part.restarts for part in self.parts if part.restarts is not None]
        return sum(counts) if counts else None

    def close(self) -> None:
        for part in self.parts:
            part.close()
