"""Has the environments stepped by the policy, and hands out rollouts."""

import itertools
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace

import torch
from torch import Tensor

from levelhead.acting import Actor
from levelhead.critic import Critic
from levelhead.distributed import WHOLE, Cutoff, Shards
from levelhead.envs import EnvState, VecEnv
from levelhead.episodes import Episode, Episodes
from levelhead.networks import Policy, State
from levelhead.numerics import pick, zero_if_finite
from levelhead.rollout import Rollout
from levelhead.seeding import Stream, derive, generator
from levelhead.stepping import Played, SteppingLoop, play_in_turn
from levelhead.tree import Tree, by_path, restore, tree_leaves, tree_map

ROWS_AT_ONCE = 2**12
"""Rows that the critic reads in one pass: with more, what its layers answer takes more memory than the rollout."""


class Collector:
    """Only the actor runs inside the stepping loop; log-probabilities and values follow in batches.

    Args:
        env: the environments; they are reset here.
        policy: acts and values; its device is where rollouts live.
        num_steps: T, the length of a rollout.
        seed: of the run.
        reward_scale: multiplies every reward that the learner sees; episode statistics stay in the environment's units.
        chunk: steps that are learned from in one piece; None for all.
        burn_in: steps before each chunk, but the first, at which the memory's state is kept.
        shards: that the environments come in here, of equal size; their seeds and the noise of actions are drawn for
            each by itself.
        cutoff: ends rollouts early where other ranks have finished theirs; None where each is seen to its end.
        halves: the environments once more, in parts of equal size with an actor each: while one part steps, actions of
            the next are chosen. Their policy, one for all, may be another than `policy`: it is brought up to date
            whenever steps are to be taken, and may go on acting while the first one learns (`ahead`). One part and an
            `Actor` where not given.
        critic: reads for the value head; in torch where not given.
    """

    def __init__(
        self,
        env: VecEnv,
        policy: Policy,
        num_steps: int,
        seed: int,
        reward_scale: float = 1.0,
        chunk: int | None = None,
        burn_in: int = 0,
        halves: Sequence[tuple[VecEnv, Actor]] = (),
        critic: Critic | None = None,
        shards: Shards = WHOLE,
        cutoff: Cutoff | None = None,
    ) -> None:
        self.env = env
        self.policy = policy
        self.num_steps = num_steps
        self.critic = critic or Critic(policy)
        self.seed = seed
        self.reward_scale = reward_scale
        self.shards = shards
        self.episodes = Episodes(env.num_envs, env.tasks)
        self._kept = [max(start - burn_in, 0) for start in range(0, num_steps, chunk or num_steps)]
        self._loops = [
            SteppingLoop(part, actor, num_steps, self._kept, cutoff)
            for part, actor in halves or [(env, Actor(policy, arrays=env.arrays))]
        ]
        self.actor = self._loops[0].actor
        self._lags = self.actor.policy is not policy
        self._ahead: Future[Played] | None = None
        self._state = policy.network.initial_state(env.num_envs)
        self.reset(0)

    def reset(self, iteration: int) -> None:
        """Starts new episodes everywhere, seeded by the iteration they start in."""
        self.settle()
        first = self.env.reset_shards(
            [derive(self.seed, Stream.ENVIRONMENT, iteration, shard) for shard in self.shards.mine]
        )
        for loop, part in zip(self._loops, self._parts(first), strict=True):
            loop.begin(part)
        self.episodes.begin()

    def _parts(self, tree: Tree) -> list[Tree]:
        """Of a tree whose leaves are `[N, ...]`, what each loop has to do with."""
        n = self.env.num_envs // len(self._loops)
        return [tree_map(lambda x, start=k * n: x[start : start + n], tree) for k in range(len(self._loops))]

    def under_way(self) -> EnvState | None:
        """What the next rollout starts from; None where environments cannot tell their state, or are ahead."""
        state = None if self._lags else self.env.get_state()
        if state is None:
            return None
        own = {name: x.clone() for name, x in self._carried().items()}
        return EnvState({**own, **{f"env/{name}": x for name, x in state.tensors.items()}}, state.values)

    def carry_on(self, state: EnvState) -> None:
        """Has the next rollout start from what was `under_way`.

        Raises:
            ValueError: it is that of other environments, or of another policy.
        """
        of_env = {name.removeprefix("env/"): x for name, x in state.tensors.items() if name.startswith("env/")}
        own = {name: x for name, x in state.tensors.items() if not name.startswith("env/")}
        restore(self._carried(), own, "the episodes under way")
        self.env.set_state(EnvState(of_env, state.values))

    def _carried(self) -> dict[str, Tensor]:
        """What goes over from one rollout to the next, but for the environments' own."""
        loops = {str(k): loop.carried() for k, loop in enumerate(self._loops)}
        return {**by_path({"loop": loops, "memory": self._state}), **self.episodes.under_way()}

    def collect(self, iteration: int) -> Rollout:
        """The next T steps of every environment. The rollout's tensors are overwritten by the next call, or `ahead`."""
        if self._ahead is None:
            self._let_act()
            self._played = self._play(iteration)
        else:
            self._played = self._ahead.result()
            self._ahead = None
        return self._value(self._played)

    def ahead(self, iteration: int) -> None:
        """Has the next T steps taken on another thread, by the policy as it is now, until `collect` asks for them.

        Raises:
            ValueError: the policy that acts is the one that learns.
        """
        if not self._lags:
            raise ValueError("a policy cannot act while it learns")
        self._let_act()
        # A thread for each time, as one that waits for more would keep the process from ending.
        executor = ThreadPoolExecutor(1)
        self._ahead = executor.submit(self._play, iteration)
        executor.shutdown(wait=False)

    def settle(self) -> None:
        """Waits for steps that are taken ahead, and forgets them."""
        if self._ahead is not None:
            wait([self._ahead])
            self._ahead = None

    def _let_act(self) -> None:
        """Gives the policy that acts the parameters of the one that learns."""
        if self._lags:
            self.actor.policy.load_state_dict(self.policy.state_dict())

    @torch.no_grad()
    def _play(self, iteration: int) -> Played:
        """The stepping loops, in turn."""
        parts = zip(self._loops, self._noise(iteration), self._parts(self._state), strict=True)
        return play_in_turn([loop.play(iteration, noise, state) for loop, noise, state in parts])

    @torch.no_grad()
    def _value(self, played: Played) -> Rollout:
        """What was played, with what the policy thinks of it now."""
        (action, parameters), valid = played.choices, played.valid
        # What follows an end, and is not valid, is still the old episode's: its final observation, seen once more.
        begins = played.begins[:-1].clone()
        begins[1:] &= valid[1:] | ~valid[:-1]
        value, next_value, features, critics = self._values(played, begins[: played.steps])
        value, next_value = (_extended(x, self.num_steps) for x in (value, next_value))
        *states, last = [State(a.shared, a.actor, c.critic) for a, c in zip(played.remembered, critics, strict=True)]
        self._state = last
        rollout = Rollout(
            observation=tree_map(lambda x: x[:-1], played.observation),
            action=action,
            action_mask=played.mask,
            parameters=parameters,
            log_prob=self.policy.action_head.log_prob(parameters, action),
            reward=played.reward * self.reward_scale,
            terminated=played.terminated,
            truncated=played.truncated,
            valid=valid,
            begins=begins,
            state=tree_map(lambda *kept: torch.stack(kept), *states),
            value=value,
            next_value=next_value,
            last_features=features,
            task=played.task,
        )
        return self._as_if_drawn_now(rollout).clone() if self._lags else rollout

    def _as_if_drawn_now(self, rollout: Rollout) -> Rollout:
        """The same actions as if the policy that learns had drawn them, and how much likelier it would."""

        def rows(tree: Tree) -> Tree:
            return tree_map(lambda x: x.flatten(0, 1), tree)

        policy, shape = self.policy, rollout.log_prob.shape
        mask = None if rollout.action_mask is None else rows(rollout.action_mask)
        features, _ = policy.actor_features(rows(policy.reader(rollout.observation)), self._state, rollout.begins)
        new = policy.action_head.evaluate(features, rows(rollout.action), mask)
        log_prob = new.log_prob.view(shape)
        return replace(
            rollout,
            parameters=tree_map(lambda x: x.unflatten(0, shape), new.parameters),
            log_prob=log_prob,
            ratio=(log_prob - rollout.log_prob).exp(),
        )

    def _noise(self, iteration: int) -> list[Tree]:
        """What each loop's actions of the rollout are drawn with."""
        shape = (self.num_steps, self.env.num_envs // self.shards.here)
        drawn = [
            self.policy.action_head.noise(shape, generator(self.seed, Stream.ACTION, iteration, shard))
            for shard in self.shards.mine
        ]
        each = len(drawn) // len(self._loops)
        return [
            tree_map(lambda *parts: torch.cat(parts, 1).to(self.policy.device), *drawn[k * each : (k + 1) * each])
            for k in range(len(self._loops))
        ]

    def _values(self, played: Played, begins: Tensor) -> tuple[Tensor, Tensor, Tensor, list[State]]:
        """Values of the observations and of their true successors, each `[T, N]`; what the value head read in the last
        row; and the states that are kept, and that after the last row.

        A final observation is valued with what was remembered after its step, and leaves that as it was.
        """
        state, finals, steps = self._state, played.finals, len(begins)
        task = None if played.task is None else played.task[:steps]
        self.critic.start()
        kept = [min(t, steps) for t in self._kept]
        if self.policy.remembers:
            stops = {0, steps, *kept, *(t + 1 for t in finals)}
        else:  # there is no order to keep
            stops = set(range(0, steps + 1, max(1, ROWS_AT_ONCE // self.env.num_envs)))
        # The row after the last is the last one's successor, whatever the next rollout makes of it.
        begins = torch.cat((begins, torch.zeros_like(begins[:1])))
        before: dict[int, State] = {}
        parts: list[Tensor] = []
        last = torch.empty(0)
        for start, stop in itertools.pairwise((*sorted(stops), steps + 1)):
            before[start] = state
            rows = tree_map(lambda x, a=start, b=stop: x[a:b], played.observation)
            features, state = self.critic(rows, state, begins[start:stop])
            parts.append(self._read_values(rows, features))
            if start < steps <= stop:
                last = features[steps - 1 - start].clone()
        values = torch.cat(parts)
        next_value = pick(values[1:], task).clone()
        for t, observation in finals.items():
            observation = tree_map(lambda x: x.to(values.device).unsqueeze(0), observation)
            final, _ = self.critic(observation, before.get(t + 1, state), torch.zeros_like(begins[:1]))
            cut = pick(self._read_values(observation, final)[0], None if task is None else task[t])
            next_value[t] = torch.where(played.truncated[t], cut, next_value[t])
        states = [before.get(t, state) for t in (*kept, steps)]
        return pick(values[:-1], task), next_value, last, states

    def _read_values(self, observation: Tree, features: Tensor) -> Tensor:
        """The critic's values, one per task; NaN where the observation is not finite, which a network could hide."""
        values = self.policy.value_head(features)
        for part in tree_leaves(observation):
            if part.is_floating_point():
                values = values + zero_if_finite(part, features.shape[:2]).unsqueeze(-1)
        return values

    def ended(self) -> list[Episode]:
        """Episodes that ended here in the latest rollout; to be called once for each."""
        played = self._played
        ends = played.terminated | played.truncated
        return self.episodes.follow(played.reward, played.valid, ends, played.task)


def _extended(x: Tensor, steps: int) -> Tensor:
    """`x` with its last row repeated up to so many."""
    return x if len(x) == steps else torch.cat((x, x[-1:].expand(steps - len(x), *x.shape[1:])))
