"""Steps the environments with the policy and hands out rollouts."""

import itertools
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from levelhead.acting import Actor
from levelhead.distributed import WHOLE, Cutoff, Shards, gathered_values
from levelhead.envs import EnvState, VecEnv
from levelhead.episodes import Episode, Episodes
from levelhead.errors import ConfigError
from levelhead.masks import require_legal
from levelhead.networks import Policy, State
from levelhead.numerics import pick
from levelhead.rollout import Rollout
from levelhead.rows import Rows
from levelhead.seeding import Stream, derive, generator
from levelhead.spaces import zeros
from levelhead.tree import Tree, by_path, restore, tree_leaves, tree_map

ROWS_AT_ONCE = 2**14
"""Rows that the critic reads in one pass: with more, what its layers answer takes more memory than the rollout."""


@dataclass(frozen=True)
class _Played:
    """What a stepping loop leaves beside the rows that it filled."""

    finals: dict[int, Tree]
    """By step, the final observations where an episode was truncated."""
    remembered: list[State]
    """At the steps that are kept."""
    steps: int
    """So many were taken; the other rows repeat the last of these, and are not valid."""


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
        actor: chooses the policy's actions; `Actor` where not given. If its policy is another one, that is brought up
            to date whenever steps are to be taken, and may go on acting while the first one learns (`ahead`).
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
        actor: Actor | None = None,
        shards: Shards = WHOLE,
        cutoff: Cutoff | None = None,
    ) -> None:
        self.env = env
        self.shards = shards
        self.cutoff = cutoff
        self.policy = policy
        self.actor = actor or Actor(policy, arrays=env.arrays)
        self._lags = self.actor.policy is not policy
        self._ahead: Future[_Played] | None = None
        self.num_steps = num_steps
        self.seed = seed
        self.reward_scale = reward_scale
        self.episodes = Episodes(env.num_envs, env.tasks)

        t, n, device = num_steps, env.num_envs, policy.device
        self._kept = [max(start - burn_in, 0) for start in range(0, t, chunk or t)]

        def rows(name: str, dtype: torch.dtype) -> Rows:
            return Rows(torch.zeros(t, n, dtype=dtype, device=device), name)

        # One row more than steps: the last one is what the next rollout starts from.
        self._observation = zeros(env.observation_space, (t + 1, n), device)
        self._observed = tree_map(lambda x: Rows(x, "observation"), self._observation)
        self._begins = Rows(torch.zeros(t + 1, n, dtype=torch.bool, device=device), "ends")
        self._reward = rows("reward", torch.float32)
        self._terminated, self._truncated = rows("terminated", torch.bool), rows("truncated", torch.bool)
        self._valid = rows("valid", torch.bool)
        self._task = rows("task", torch.int64) if env.tasks else None
        self._state = policy.network.initial_state(n)
        self._mask: Tree | None = None
        self._masks_at_hand = True
        self.reset(0)

    def reset(self, iteration: int) -> None:
        """Starts new episodes everywhere, seeded by the iteration they start in."""
        self.settle()
        first = self.env.reset_shards(
            [derive(self.seed, Stream.ENVIRONMENT, iteration, shard) for shard in self.shards.mine]
        )
        self._write_observation(-1, first)
        self._begins.tensor[-1] = True
        if self.env.action_mask is not None:
            legal = self.policy.action_head.legal(self.env.action_mask)
            if legal.shape != (self.env.num_envs,):
                raise ConfigError(f"the environments' masks are for {tuple(legal.shape)}, not {self.env.num_envs} rows")
            # Where reading one would mean to wait for a device, a rollout's are read at its end.
            self._masks_at_hand = legal.device.type == "cpu"
            if self._mask is None:
                steps, device = self.num_steps, self.policy.device
                self._mask = tree_map(
                    lambda x: Rows(x.new_zeros(steps, *x.shape, device=device), "action_mask"), self.env.action_mask
                )
        if self._task is not None:
            task = self.env.task
            if task is None or task.dtype != torch.int64 or task.shape != (self.env.num_envs,):
                n = self.env.num_envs
                raise ConfigError(f"the environments' task is {task}; accepted: {n} numbers of torch.int64")
            self._require_known(task)
        self.episodes.begin()

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
        return {
            **{f"observation/{path}": x[-1] for path, x in by_path(self._observation).items()},
            "begins": self._begins.tensor[-1],
            **{f"memory/{path}": x for path, x in by_path(self._state).items()},
            **self.episodes.under_way(),
        }

    def collect(self, iteration: int) -> Rollout:
        """The next T steps of every environment. The rollout's tensors are overwritten by the next call, or `ahead`."""
        if self._ahead is None:
            self._let_act()
            played = self._play(iteration)
        else:
            played = self._ahead.result()
            self._ahead = None
        return self._value(played)

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
    def _play(self, iteration: int) -> "_Played":
        """The stepping loop."""
        env, actor = self.env, self.actor
        step_envs = env.step_arrays if actor.arrays else env.step
        noise = self._noise(iteration)
        self._valid.tensor.fill_(True)
        finals: dict[int, Tree] = {}
        remembered: list[State] = []

        tree_map(lambda x: x[0].copy_(x[-1]), self._observation)
        self._begins.tensor[0] = self._begins.tensor[-1]
        actor.start(self._observation, self._begins.tensor, noise, self._state)
        if self.cutoff is not None:
            self.cutoff.begin(iteration)
        for t in range(self.num_steps):
            if t and self.cutoff is not None and self.cutoff.reached():
                steps = t
                break
            if self._task is not None and env.task is not None:
                self._task.write(t, env.task)
            if t in self._kept:
                remembered.append(actor.state)
            step = step_envs(actor(t, self._write_mask(t)))
            self._write_observation(t + 1, step.observation)
            self._reward.write(t, step.reward)
            self._terminated.write(t, step.terminated)
            self._truncated.write(t, step.truncated)
            begins = step.terminated | step.truncated
            if step.valid is not None:
                self._valid.write(t, step.valid)
                begins = begins | ~step.valid
            self._begins.write(t + 1, begins)
            # Whether a tensor holds any True is asked after the last step, so that the host need not wait at each.
            if step.final_observation is not None and (not actor.arrays or step.truncated.any()):
                finals[t] = tree_map(lambda x: torch.as_tensor(x).clone(), step.final_observation)
        else:
            steps = self.num_steps
            if self.cutoff is not None:
                self.cutoff.finish()
        self._repeat_last(steps)
        remembered += [actor.state] * (len(self._kept) - len(remembered))
        self._require_legal()
        if self._task is not None:
            self._require_known(self._task.tensor)
        if finals:
            cut = self._truncated.tensor.any(1).tolist()
            finals = {t: observation for t, observation in finals.items() if cut[t]}
        return _Played(finals, remembered, steps)

    def _repeat_last(self, steps: int) -> None:
        """Fills rows beyond so many steps with what can do no harm: nothing ends in them, and they are not valid."""
        if steps == self.num_steps:
            return
        assert self.actor.choices is not None
        repeated = [self.actor.choices, tree_map(lambda rows: rows.tensor, self._mask) if self._mask else ()]
        repeated += [() if self._task is None else self._task.tensor]
        for x in tree_leaves((*repeated, self._reward.tensor)):
            x[steps:] = x[steps - 1]
        for x in tree_leaves((self._observation, self._begins.tensor)):  # which have a row more
            x[steps + 1 :] = x[steps]
        for rows in (self._terminated, self._truncated, self._valid):
            rows.tensor[steps:] = False

    @torch.no_grad()
    def _value(self, played: "_Played") -> Rollout:
        """What was played, with what the policy thinks of it now."""
        actor, head, valid = self.actor, self.policy.action_head, self._valid.tensor
        assert actor.choices is not None
        action, parameters = actor.choices
        # What follows an end, and is not valid, is still the old episode's: its final observation, seen once more.
        begins = self._begins.tensor[:-1].clone()
        begins[1:] &= valid[1:] | ~valid[:-1]
        value, next_value, features, critics = self._values(self._state, begins[: played.steps], played.finals)
        value, next_value = (_extended(x, self.num_steps) for x in (value, next_value))
        self._state = State(actor.state.shared, actor.state.actor, critics.pop().critic)
        remembered = [State(a.shared, a.actor, c.critic) for a, c in zip(played.remembered, critics, strict=True)]
        rollout = Rollout(
            observation=tree_map(lambda x: x[:-1], self._observation),
            action=action,
            action_mask=None if self._mask is None else tree_map(lambda rows: rows.tensor, self._mask),
            parameters=parameters,
            log_prob=head.log_prob(parameters, action),
            reward=self._reward.tensor * self.reward_scale,
            terminated=self._terminated.tensor,
            truncated=self._truncated.tensor,
            valid=valid,
            begins=begins,
            state=tree_map(lambda *states: torch.stack(states), *remembered),
            value=value,
            next_value=next_value,
            last_features=features,
            task=None if self._task is None else self._task.tensor,
        )
        return self._as_of_now(rollout).clone() if self._lags else rollout

    def _as_of_now(self, rollout: Rollout) -> Rollout:
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

    def _noise(self, iteration: int) -> Tree:
        """What the rollout's actions are drawn with."""
        shape = (self.num_steps, self.env.num_envs // self.shards.here)
        drawn = [
            self.policy.action_head.noise(shape, generator(self.seed, Stream.ACTION, iteration, shard))
            for shard in self.shards.mine
        ]
        return tree_map(lambda *parts: torch.cat(parts, 1).to(self.policy.device), *drawn)

    def _write_observation(self, t: int, observation: Tree) -> None:
        try:
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
            require_legal(self.policy.action_head.legal(mask), "environment")
        tree_map(lambda rows, x: rows.write(t, x), self._mask, mask)
        return tree_map(lambda rows: rows.tensor[t], self._mask)

    def _require_legal(self) -> None:
        """Refuses masks of the whole rollout that `_write_mask` left unread."""
        if self._mask is not None and not self._masks_at_hand:
            legal = self.policy.action_head.legal(tree_map(lambda rows: rows.tensor, self._mask))
            require_legal(legal.all(0), "environment")

    def _require_known(self, task: Tensor) -> None:
        known = len(self.env.tasks)
        if not bool(((task >= 0) & (task < known)).all()):
            raise ConfigError(
                f"the environments play tasks {task.unique().tolist()}; they named {known}: {self.env.tasks}"
            )

    def _values(
        self, state: State, begins: Tensor, finals: dict[int, Tree]
    ) -> tuple[Tensor, Tensor, Tensor, list[State]]:
        """Values of the observations and of their true successors, each `[T, N]`; what the value head read in the last
        row; and the states that are kept, and that after the last row.

        A final observation is valued with what was remembered after its step, and leaves that as it was.
        """
        steps = len(begins)
        task = None if self._task is None else self._task.tensor[:steps]
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
            rows = tree_map(lambda x, a=start, b=stop: x[a:b], self._observation)
            features, state = self._critic_features(rows, state, begins[start:stop])
            parts.append(self._read_values(rows, features))
            if start < steps <= stop:
                last = features[steps - 1 - start].clone()
        values = torch.cat(parts)
        next_value = pick(values[1:], task).clone()
        for t, observation in finals.items():
            observation = tree_map(lambda x: x.to(values.device).unsqueeze(0), observation)
            final, _ = self._critic_features(observation, before.get(t + 1, state), torch.zeros_like(begins[:1]))
            cut = pick(self._read_values(observation, final)[0], None if task is None else task[t])
            next_value[t] = torch.where(self._truncated.tensor[t], cut, next_value[t])
        states = [before.get(t, state) for t in (*kept, steps)]
        return pick(values[:-1], task), next_value, last, states

    def _critic_features(self, observation: Tree, state: State, begins: Tensor) -> tuple[Tensor, State]:
        """Of `[T, N, ...]` observations, `[T, N, D]`."""
        x = tree_map(lambda part: part.flatten(0, 1), self.policy.reader(observation))
        features, state = self.policy.critic_features(x, state, begins)
        return features.unflatten(0, begins.shape), state

    def _read_values(self, observation: Tree, features: Tensor) -> Tensor:
        """The critic's values, one per task; NaN where the observation is not finite, which a network could hide."""
        values = self.policy.value_head(features)
        for part in tree_leaves(observation):
            if part.is_floating_point():
                finite = part.isfinite().reshape(*features.shape[:2], -1).all(-1, keepdim=True)
                values = torch.where(finite, values, torch.nan)
        return values

    def ended(self) -> list[Episode]:
        """Episodes that ended in the latest rollout, on all ranks, in order; to be called once for each."""
        found = self.episodes.follow(
            self._reward.tensor,
            self._valid.tensor,
            self._terminated.tensor | self._truncated.tensor,
            None if self._task is None else self._task.tensor,
        )
        return sorted(itertools.chain(*gathered_values(found)), key=lambda episode: episode.step)


def _extended(x: Tensor, steps: int) -> Tensor:
    """`x` with its last row repeated up to so many."""
    return x if len(x) == steps else torch.cat((x, x[-1:].expand(steps - len(x), *x.shape[1:])))
