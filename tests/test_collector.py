"""Rollouts: what is stored is what was drawn and what truly followed."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.testing import assert_close

from levelhead.actions import CategoricalHead, GaussianHead
from levelhead.builders import build_policy
from levelhead.collector import Collector
from levelhead.config import MemoryConfig, PPOConfig
from levelhead.envs import GymnasiumVecEnv, Step, TensorCartPole, make_gymnasium
from levelhead.errors import ConfigError
from levelhead.returns import gae
from levelhead.tree import tree_leaves
from parts import HostReads, features_of
from toys import (
    SMALL,
    Chain,
    Counting,
    Guarded,
    Matching,
    Noise,
    Switching,
    Tampered,
    Toy,
    config,
    counting_envs,
    readout,
)

every_mode = pytest.mark.parametrize("mode", list(AutoresetMode))


def policy_for(env, **options):
    return build_policy(config(env, **options), env.observation_space, env.action_space)


@every_mode
@pytest.mark.parametrize("at_once", [1, 7, 10**6])
def test_the_next_value_is_that_of_the_true_successor_over_all_rollouts(monkeypatch, mode, at_once):
    monkeypatch.setattr("levelhead.collector.ROWS_AT_ONCE", at_once)
    collector = Collector(counting_envs(mode), readout(), 7, seed=1)
    for iteration in range(4):
        rollout = collector.collect(iteration)
        observation = rollout.observation.squeeze(-1)
        # An episode counts upwards, so the true successor is one more, at its end too; its value is 3 times that.
        matters = rollout.valid & ~rollout.terminated
        assert (matters & rollout.truncated).any()
        assert torch.equal(rollout.value, 3 * observation)
        assert torch.equal(rollout.last_features.squeeze(-1), observation[-1])
        assert torch.equal(rollout.next_value[matters], 3 * (observation[matters] + 1))
        assert torch.equal(rollout.reward[rollout.valid], (observation[rollout.valid] + 1) / 4)


@every_mode
def test_rollouts_join_without_a_gap(mode):
    length, pieces = 5, []
    long = Collector(counting_envs(mode), readout(), 3 * length, seed=1).collect(0)
    collector = Collector(counting_envs(mode), readout(), length, seed=1)
    for iteration in range(3):
        rollout = collector.collect(iteration)
        names = ("observation", "reward", "terminated", "truncated", "valid", "value", "next_value")
        pieces.append({name: getattr(rollout, name).clone() for name in names})
    for name in names:
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), getattr(long, name)), name


@every_mode
def test_episodes_are_counted_whole_across_rollouts_in_the_environments_units(mode):
    plan = ((4, "t"), (3, "c"))
    collector = Collector(counting_envs(mode, [plan]), readout(), 3, seed=1, reward_scale=1000.0)
    assert collector.episodes.metrics() == {}
    for iteration in range(5):
        collector.collect(iteration)
        collector.episodes.record(collector.ended())
    lengths = [4, 3] * 5
    returns = [sum(100 * e + t + 1 for t in range(n)) / 4 for e, n in enumerate(lengths)]
    ended = len(collector.episodes.lengths[0])
    assert ended >= 3
    assert [list(window) for window in collector.episodes.lengths] == [lengths[:ended]]
    assert [list(window) for window in collector.episodes.returns] == [returns[:ended]]
    expected = {"rollout/ep_rew_mean": np.mean(returns[:ended]), "rollout/ep_len_mean": np.mean(lengths[:ended])}
    assert collector.episodes.metrics() == pytest.approx(expected)


def test_the_reward_scale_multiplies_what_the_learner_sees():
    plain, scaled = (Collector(counting_envs("SameStep"), readout(), 6, 1, x).collect(0) for x in (1.0, 2.5))
    assert_close(scaled.reward, 2.5 * plain.reward)
    assert torch.equal(scaled.value, plain.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_drawn_action_is_stored_while_the_environment_receives_it_within_its_space(dtype):
    space = Box(np.array([-0.1, -1 / 3], dtype), np.array([0.1, 0.7], dtype), dtype=dtype)
    env = make_gymnasium(lambda: Counting(plan=((100, "c"),), action_space=space), 2)
    head = GaussianHead(1, torch.from_numpy(space.low), torch.from_numpy(space.high))
    rollout = Collector(env, readout(head), 20, seed=1).collect(0)
    received = torch.from_numpy(np.stack([one.received for one in env.env.envs], 1))
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    assert_close(received, rollout.action.to(received.dtype).clamp(low, high), rtol=0, atol=1e-6)
    assert (rollout.action.abs() > 0.8).any()
    assert all(space.contains(action) for row in received.numpy() for action in row)
    assert_close(rollout.log_prob, head.evaluate(torch.zeros(20, 2, 1), rollout.action).log_prob)


@pytest.mark.parametrize("env", [Matching, Noise])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_stored_log_probability_is_that_of_the_policy_as_it_stands(env, normalize):
    env = env()
    policy = policy_for(env, network=replace(SMALL, normalize_observation=normalize))
    rollout = Collector(env, policy, 32, seed=1).collect(0)
    with torch.no_grad():
        features = features_of(policy, policy.reader(rollout.observation))[0]
        evaluated = policy.action_head.evaluate(features, rollout.action)
    assert_close((evaluated.log_prob - rollout.log_prob).exp(), torch.ones(32, 8), rtol=1e-6, atol=0)


def test_the_seed_decides_the_rollout_and_every_iteration_draws_anew():
    def actions(seed, iteration):
        env = Matching()
        return Collector(env, policy_for(env), 16, seed).collect(iteration).action

    assert torch.equal(actions(1, 0), actions(1, 0))
    assert not torch.equal(actions(1, 0), actions(2, 0))
    assert not torch.equal(actions(1, 0), actions(1, 1))


def test_environments_that_reuse_their_buffers_are_copied_from_in_time():
    def reusing(env):
        buffers = {}

        def tamper(_, step):
            for name, x in step._asdict().items():
                if x is not None:
                    buffers.setdefault(name, torch.empty_like(x)).copy_(x)
            return step._replace(**{name: x for name, x in buffers.items() if getattr(step, name) is not None})

        return Tampered(env, tamper)

    fresh, reused = (
        Collector(wrap(counting_envs(AutoresetMode.SAME_STEP)), readout(), 9, 1).collect(0)
        for wrap in (lambda env: env, reusing)
    )
    for name in ("observation", "reward", "terminated", "truncated", "valid", "next_value"):
        assert torch.equal(getattr(fresh, name), getattr(reused, name)), name


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_rewards_of_invalid_rows_reach_no_episode(bad):
    def tamper(_, step):
        if step.valid is None:
            return step
        return step._replace(reward=torch.where(step.valid, step.reward, bad))

    clean, dirty = (
        Collector(wrap(counting_envs(AutoresetMode.NEXT_STEP)), readout(), 20, 1)
        for wrap in (lambda env: env, lambda env: Tampered(env, tamper))
    )
    for collector in (clean, dirty):
        assert not collector.collect(0).valid.all()
        collector.episodes.record(collector.ended())
    assert dirty.episodes.metrics() == clean.episodes.metrics()


def test_only_the_latest_hundred_episodes_are_averaged():
    collector = Collector(Noise(), readout(), 50, seed=1)
    collector.collect(0)
    collector.episodes.record(collector.ended())
    assert [len(window) for window in (*collector.episodes.returns, *collector.episodes.lengths)] == [100, 100]


def test_a_reset_starts_new_episodes_and_keeps_the_record():
    collector = Collector(Chain(num_envs=2), readout(), 8, seed=1)
    collector.collect(0)
    collector.episodes.record(collector.ended())
    assert [list(window) for window in collector.episodes.lengths] == [[5, 5]]
    collector.reset(1)
    collector.collect(1)
    collector.episodes.record(collector.ended())
    assert [list(x) for x in (*collector.episodes.lengths, *collector.episodes.returns)] == [[5, 5, 5, 5]] * 2


@every_mode
def test_an_episode_that_a_reset_cuts_is_bootstrapped_from_what_would_have_followed(mode):
    # At a checkpoint nothing needs to be marked as truncated: a rollout's last row is bootstrapped in any case.
    collector = Collector(counting_envs(mode, [((100, "t"),)]), readout(), 7, seed=1)
    rollout = collector.collect(0)
    successor = rollout.observation[-1, 0, 0] + 1
    collector.reset(1)
    ends = rollout.terminated | rollout.truncated
    assert not ends.any()
    _, target = gae(rollout.reward, rollout.value, rollout.next_value, ends, ends, gamma=1.0, lam=1.0)
    assert_close(target[:, 0], rollout.reward.flip(0).cumsum(0).flip(0)[:, 0] + 3 * successor)
    following = collector.collect(1)
    assert following.begins[0].all()
    assert following.observation[0].tolist() == [[0.0]]


def test_episodes_start_differently_after_every_reset_as_seed_and_iteration_decide():
    def first(seed, iteration):
        collector = Collector(Noise(), readout(), 4, seed)
        collector.reset(iteration)
        return collector.collect(0).observation[0]

    assert torch.equal(first(1, 3), first(1, 3))
    assert not torch.equal(first(1, 3), first(1, 4))
    assert not torch.equal(first(1, 3), first(2, 3))


@pytest.mark.parametrize("field", ["observation", "reward", "terminated", "truncated"])
def test_what_an_environment_answers_in_another_shape_is_refused_by_name(field):
    env = Tampered(Noise(num_envs=4), lambda call, step: step._replace(**{field: getattr(step, field)[:1]}))
    collector = Collector(env, policy_for(env), 8, seed=1)
    with pytest.raises(ConfigError, match=rf"{field} has shape \(1.*expected \(4"):
        collector.collect(0)


# -- several tasks -----------------------------------------------------------------------------------------------


@every_mode
def test_every_row_belongs_to_the_task_that_was_played_and_is_valued_for_it_at_its_end_too(mode):
    collector = Collector(Switching(counting_envs(mode)), readout(tasks=3), 7, seed=1)
    cuts = 0
    for iteration in range(4):
        rollout = collector.collect(iteration)
        observation = rollout.observation.squeeze(-1)
        index = torch.arange(3)
        episode = ((observation - 1000 * index) // 100).long()
        task, valid = (index + episode) % 3, rollout.valid
        assert torch.equal(rollout.task[valid], task[valid])
        slope = 3.0 + 2.0 * task
        assert torch.equal(rollout.value[valid], (slope * observation)[valid])
        # The successor belongs to the same episode, so to the same task, even where the next row names another one.
        matters = valid & ~rollout.terminated
        assert torch.equal(rollout.next_value[matters], (slope * (observation + 1))[matters])
        cuts += int((matters & rollout.truncated)[:-1][rollout.task[1:] != rollout.task[:-1]].sum())
    assert cuts > 5


def test_without_tasks_a_rollout_names_none():
    assert Collector(counting_envs(AutoresetMode.SAME_STEP), readout(), 3, seed=1).collect(0).task is None


@every_mode
def test_episodes_are_counted_by_the_task_that_they_played(mode):
    collector = Collector(Switching(counting_envs(mode, [((4, "t"), (3, "c"))])), readout(tasks=3), 3, seed=1)
    lengths = [4, 3] * 5
    returns = [sum(100 * e + t + 1 for t in range(n)) / 4 for e, n in enumerate(lengths)]
    seen = set()
    for iteration in range(8):
        collector.collect(iteration)
        collector.episodes.record(collector.ended())
        episodes = collector.episodes
        ended = sum(len(window) for window in episodes.lengths)
        seen.add(min(ended, 3))
        expected = {}
        for name, windows, values in (("rew", episodes.returns, returns), ("len", episodes.lengths, lengths)):
            by_task = [values[:ended][k::3] for k in range(3)]
            assert [list(window) for window in windows] == by_task
            means = {k: np.mean(x) for k, x in enumerate(by_task) if x}
            expected |= {f"rollout/ep_{name}_mean/{'abc'[k]}": mean for k, mean in means.items()}
            if means:  # every task counts alike, however many episodes it had
                expected[f"rollout/ep_{name}_mean"] = np.mean(list(means.values()))
        assert episodes.metrics() == pytest.approx(expected)
    assert seen >= {0, 1, 3}


class Crowded(Noise):
    """Seven of eight environments play the first of two tasks."""

    tasks = ("many", "few")
    task = torch.tensor([0] * 7 + [1])


def test_every_task_averages_a_hundred_episodes_of_its_own():
    env = Crowded()
    collector = Collector(env, readout(tasks=2), 50, seed=1)
    collector.collect(0)
    collector.episodes.record(collector.ended())
    for windows in (collector.episodes.returns, collector.episodes.lengths):
        assert [len(window) for window in windows] == [100, 50]


def test_the_record_of_every_task_comes_back_from_json():
    collectors = [Collector(Crowded(), readout(tasks=2), 20, seed=1) for _ in range(2)]
    collectors[0].collect(0)
    collectors[0].episodes.record(collectors[0].ended())
    before, after = (collector.episodes for collector in collectors)
    for _ in range(2):  # the second time there is something there already
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert after.metrics() == before.metrics() != {}
    assert after.state_dict() == before.state_dict()


@pytest.mark.parametrize("task", [None, torch.tensor([0, 2, 1]), torch.tensor([0, -1, 1])])
def test_environments_that_do_not_say_which_of_their_tasks_they_play_are_refused(task):
    env = Noise(num_envs=3)
    env.tasks, env.task = ("a", "b"), task
    reason = (
        "task is None; accepted: 3 numbers"
        if task is None
        else rf"tasks {re.escape(str(sorted(task.tolist())))}.*named 2"
    )
    with pytest.raises(ConfigError, match=reason):
        Collector(env, readout(tasks=2), 4, seed=1)


@pytest.mark.parametrize("task", [torch.tensor([0, 1]), torch.tensor([[0, 1, 0]]), torch.tensor([0.0, 1.0, 0.0])])
def test_tasks_of_another_shape_or_dtype_are_refused(task):
    env = Noise(num_envs=3)
    env.tasks, env.task = ("a", "b"), task
    with pytest.raises(ConfigError, match=r"accepted: 3 numbers of torch\.int64"):
        Collector(env, readout(tasks=2), 4, seed=1)


# -- masks -----------------------------------------------------------------------------------------------------------


def test_what_is_stored_as_legal_is_what_was_chosen_from():
    collector = Collector(make_gymnasium(Guarded, 3), readout(CategoricalHead(1, 10, start=3)), 20, seed=1)
    for iteration in range(2):
        rollout = collector.collect(iteration)
        assert (rollout.action_mask.sum(-1) == 2).all()
        assert rollout.action_mask.gather(-1, rollout.action.unsqueeze(-1)).all()
        assert_close(rollout.log_prob, torch.full((20, 3), math.log(0.5)))  # a blind choice among two


def test_a_mask_that_leaves_nothing_names_the_environment():
    makes = [Guarded, lambda: Guarded(nothing_legal_at=4), Guarded]
    env = GymnasiumVecEnv(SyncVectorEnv(makes, autoreset_mode=AutoresetMode.SAME_STEP))
    collector = Collector(env, readout(CategoricalHead(1, 10, start=3)), 8, seed=1)
    with pytest.raises(ConfigError, match=r"action mask of environment 1 leaves nothing legal"):
        collector.collect(0)


@pytest.mark.parametrize("when", [0, 3])
def test_masks_that_come_and_go_are_refused(when):
    env = make_gymnasium(Guarded, 2)

    def tamper(call, step):
        if call == when:
            env.action_mask = None
        return step

    class Masked(Tampered):
        action_mask = property(lambda self: self.env.action_mask)

    collector = Collector(Masked(env, tamper), readout(CategoricalHead(1, 10, start=3)), 8, seed=1)
    with pytest.raises(ConfigError, match="masks at some steps, and none at others"):
        collector.collect(0)


def test_masks_that_the_action_head_does_not_take_are_refused_at_once():
    with pytest.raises(ConfigError, match=r"expected torch\.bool \(\.\.\., 2\)"):
        Collector(make_gymnasium(Guarded, 2), readout(), 8, seed=1)


# -- on a device -----------------------------------------------------------------------------------------------------


class Staggered(Toy):
    """Environment i counts the steps of its episodes, is cut after i + 2 of them, and shows every final observation."""

    def __init__(self, num_envs=3, device="cpu", masked=False):
        super().__init__(num_envs)
        self.limit = torch.arange(2, num_envs + 2, device=device)
        if masked:
            self.action_mask = torch.ones(num_envs, 2, dtype=torch.bool, device=device)

    def reset(self, seed):
        self.taken, self.count = 0, torch.zeros_like(self.limit)
        return self.count.float().unsqueeze(1)

    def step(self, action):
        self.taken += 1
        last = self.count + 1
        cut = last == self.limit
        self.count = torch.where(cut, 0, last)
        observation, final = (x.float().unsqueeze(1) for x in (self.count, last))
        return Step(observation, torch.ones_like(final[:, 0]), torch.zeros_like(cut), cut, final_observation=final)


def test_final_observations_that_come_with_every_step_are_valued_where_an_episode_was_cut():
    collector = Collector(Staggered(), readout(), 7, seed=1)
    for iteration in range(3):
        rollout = collector.collect(iteration)
        assert rollout.truncated.any()
        assert torch.equal(rollout.next_value, 3 * (rollout.observation.squeeze(-1) + 1))


@pytest.mark.parametrize("masked", [False, True])
def test_nothing_is_read_from_a_device_before_the_last_step(masked):
    env = Staggered(device="meta", masked=masked)  # whose tensors cannot be read
    collector = Collector(env, policy_for(Staggered()).to("meta"), 9, seed=1)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        collector.collect(0)
    assert env.taken == 9


@pytest.mark.parametrize("env", [Staggered, TensorCartPole, Switching])
def test_the_number_of_reads_does_not_grow_with_that_of_the_steps(env):
    def reads(steps):
        envs = Switching(Staggered(3)) if env is Switching else env(3)
        policy = readout(tasks=3) if env is Switching else policy_for(envs)
        collector = Collector(envs, policy, steps, seed=1)
        collector.collect(0)
        with HostReads() as host:
            collector.collect(1)
        return host.reads

    assert reads(40) == reads(20)
    assert len(reads(20)) <= 3


def test_a_mask_on_a_device_that_leaves_nothing_is_refused_after_the_rollout(monkeypatch):
    env = Staggered(masked=True)
    collector = Collector(env, policy_for(env), 9, seed=1)
    monkeypatch.setattr(collector._loops[0], "_masks_at_hand", False)
    collector.collect(0)
    env.action_mask[1] = False
    with pytest.raises(ConfigError, match=r"action mask of environment 1 leaves nothing legal"):
        collector.collect(1)
    assert env.taken == 18


class Cut:
    """Ends rollouts where a plan says so."""

    def __init__(self, *lengths):
        self.lengths = lengths
        self.finished = 0

    def begin(self, iteration):
        self.left = self.lengths[iteration]

    def reached(self):
        self.left -= 1
        return self.left == 0

    def finish(self):
        self.finished += 1


@every_mode
@pytest.mark.parametrize("memory", [MemoryConfig(), MemoryConfig("lstm", 4)])
def test_rollouts_that_are_cut_short_join_without_a_gap(mode, memory):
    lengths, cut = (4, 7, 1, 6), Cut(4, 100, 1, 6)
    policy = policy_for(counting_envs(mode), memory=memory)
    long = Collector(counting_envs(mode), policy, sum(lengths), seed=1).collect(0)
    collector = Collector(counting_envs(mode), policy, 7, seed=1, cutoff=cut)
    names = ("observation", "reward", "terminated", "truncated", "valid", "value", "next_value")
    pieces, episodes = [], []
    for iteration, length in enumerate(lengths):
        rollout = collector.collect(iteration)
        episodes += collector.ended()
        assert not (rollout.valid | rollout.terminated | rollout.truncated)[length:].any()
        assert rollout.log_prob.isfinite().all()
        last = policy.value_head(rollout.last_features).squeeze(-1)
        assert_close(last, rollout.value[-1])
        pieces.append({name: getattr(rollout, name)[:length].clone() for name in names})
    assert cut.finished == 1
    for name in names:
        joined, expected = torch.cat([piece[name] for piece in pieces]), getattr(long, name)
        rows = slice(None) if name == "valid" else long.valid
        assert_close(joined[rows], expected[rows], msg=name)
    whole = Collector(counting_envs(mode), policy, sum(lengths), seed=1)
    whole.collect(0)
    assert [episode[1:] for episode in episodes] == [episode[1:] for episode in whole.ended()]


def test_chunks_that_were_not_played_begin_with_the_state_at_the_end():
    policy = policy_for(counting_envs("SameStep"), memory=MemoryConfig("lstm", 4), ppo=PPOConfig(minibatches=1))
    collector = Collector(counting_envs("SameStep"), policy, 8, seed=1, chunk=2, cutoff=Cut(3, 100))
    states = [x.clone() for x in tree_leaves(collector.collect(0).state)]
    for state in states:
        assert not torch.equal(state[0], state[1])
        assert torch.equal(state[2], state[3])
    following = tree_leaves(collector.collect(1).state)
    assert all(torch.equal(state[-1], later[0]) for state, later in zip(states, following, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_handed_the_rows_that_a_cpu_has():
    rollouts = []
    for device in ("cpu", "cuda"):
        collector = Collector(counting_envs("SameStep"), readout().to(device), 7, seed=1)
        collector.collect(0)
        rollouts.append(collector.collect(1))
    for name in ("observation", "reward", "terminated", "truncated", "value", "next_value"):
        assert_close(getattr(rollouts[0], name), getattr(rollouts[1], name).cpu())
