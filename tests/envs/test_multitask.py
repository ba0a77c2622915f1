"""Several kinds of environments as one: common spaces, and every member's own story told unchanged."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from levelhead.envs import GymnasiumVecEnv, MultiTaskVecEnv, make_env, make_gymnasium
from levelhead.errors import ConfigError
from toys import PLANS, TWO_CHOICES, Counting, Toy, counting_envs, expected_story, told_story

MODES = {mode.name: mode for mode in AutoresetMode}
FOUR = Discrete(4)
BOTH = "Pendulum-v1+MountainCarContinuous-v0"


class Recorder(Toy):
    """Observations of any shape that count upwards, and every action that arrives."""

    def __init__(self, num_envs=2, shape=(1,), space=TWO_CHOICES, dtype=torch.float32, observes=None):
        super().__init__(num_envs)
        self.observation_space = observes or Box(-np.inf, np.inf, shape)
        self.action_space = space
        self.shape, self.dtype = shape, dtype
        self.received, self.closed, self.seeds = [], 0, []

    def observe(self):
        numbers = torch.arange(self.num_envs * int(np.prod(self.shape)))
        return (1 + numbers).view(self.num_envs, *self.shape).to(self.dtype)

    def reset(self, seed):
        self.seeds.append(seed)
        return super().reset(seed)

    def reward(self, action):
        self.received.append(action)
        return super().reward(action)

    def close(self):
        self.closed += 1


def boxed(low, high, dtype=np.float32):
    return Recorder(space=Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype))


# -- observations ------------------------------------------------------------------------------------------------


def test_observations_are_flattened_filled_up_with_zeros_and_followed_by_the_task():
    members = {
        "grid": Recorder(2, (2, 2)),
        "number": Recorder(1, (1,), dtype=torch.float64),
        "image": Recorder(2, (1, 3, 2), dtype=torch.uint8),
    }
    env = MultiTaskVecEnv(members)
    expected = torch.tensor(
        [
            [1, 2, 3, 4, 0, 0, 1, 0, 0],
            [5, 6, 7, 8, 0, 0, 1, 0, 0],
            [1, 0, 0, 0, 0, 0, 0, 1, 0],
            [1, 2, 3, 4, 5, 6, 0, 0, 1],
            [7, 8, 9, 10, 11, 12, 0, 0, 1],
        ]
    ).float()
    assert torch.equal(env.reset(0), expected)
    step = env.step(torch.zeros(5, dtype=torch.int64))
    assert torch.equal(step.observation, expected)
    assert step.observation.dtype == torch.float32
    assert env.observation_space == Box(-np.inf, np.inf, (9,))
    assert env.observation_space.contains(step.observation[0].numpy())


def test_it_names_its_tasks_and_says_which_environment_plays_which():
    env = MultiTaskVecEnv({"two": Recorder(2), "three": Recorder(3), "one": Recorder(1)})
    assert env.num_envs == 6
    assert env.tasks == ("two", "three", "one")
    assert env.task.dtype == torch.int64
    assert env.task.tolist() == [0, 0, 1, 1, 1, 2]


# -- stories -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", MODES)
@pytest.mark.parametrize("second", MODES)
def test_members_of_every_autoreset_mode_tell_their_own_stories_side_by_side(first, second):
    env = MultiTaskVecEnv({name: counting_envs(MODES[mode]) for name, mode in (("a", first), ("b", second))})
    stories = told_story(env, 40)
    assert len(stories) == 6
    for i, story in enumerate(stories):
        assert len(story) >= 20
        index = i % 3
        assert story == [x for x, _ in zip(expected_story(index, PLANS[index]), story, strict=False)]


def test_final_observations_are_padded_like_all_others():
    env = MultiTaskVecEnv({name: counting_envs(MODES[name]) for name in ("SAME_STEP", "NEXT_STEP", "DISABLED")})
    env.reset(0)
    finals = 0
    for _ in range(20):
        step = env.step(torch.zeros(9, dtype=torch.int64))
        for x in (step.observation, step.final_observation):
            if x is not None:
                assert torch.equal(x[:, 1:], torch.eye(3)[env.task])
        ended = step.terminated | step.truncated
        if step.final_observation is not None:
            finals += int(ended.sum())
            assert torch.equal(step.final_observation[~ended], step.observation[~ended])
        if step.valid is not None:
            assert step.valid[env.task != 1].all()
    assert finals > 20


def test_nothing_is_said_of_valid_rows_and_final_observations_where_no_member_does():
    step = MultiTaskVecEnv({"a": Recorder(), "b": Recorder()}).step(torch.zeros(4, dtype=torch.int64))
    assert step.valid is None
    assert step.final_observation is None


# -- seeds -------------------------------------------------------------------------------------------------------


def test_every_member_has_been_sent_its_actions_before_any_is_waited_for():
    log = []

    class Told(Recorder):
        def send(self, action):
            log.append("sent")
            super().send(action)

        def receive(self):
            log.append("received")
            return super().receive()

    env = MultiTaskVecEnv({"a": Told(), "b": Told()})
    env.reset(0)
    env.step(torch.zeros(4, dtype=torch.int64))
    assert log == ["sent", "sent", "received", "received"]


def test_every_member_has_a_seed_of_its_own_which_the_seed_decides():
    def seeds(seed):
        members = Recorder(), Recorder(), Recorder()
        MultiTaskVecEnv(dict(zip("abc", members, strict=True))).reset(seed)
        return [member.seeds for member in members]

    assert seeds(1) == seeds(1)
    flat = [x for seed in (1, 2) for (x,) in seeds(seed)]
    assert len(set(flat)) == 6


def test_the_same_seed_starts_the_same_episodes_and_members_start_differently():
    def first(seed):
        env = MultiTaskVecEnv({name: make_gymnasium("CartPole-v1", 2) for name in "ab"})
        x = env.reset(seed)[:, :4].clone()
        env.close()
        return x

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert len(first(1).unique(dim=0)) == 4


# -- actions -----------------------------------------------------------------------------------------------------


def test_discrete_actions_reach_the_members_as_they_are():
    members = {"a": Recorder(1, space=Discrete(5, start=2)), "b": Recorder(2, space=Discrete(5, start=2))}
    env = MultiTaskVecEnv(members)
    assert env.action_space == Discrete(5, start=2)
    env.step(torch.tensor([6, 2, 4]))
    assert [m.received[0].tolist() for m in members.values()] == [[6], [2, 4]]


def test_every_task_reads_as_many_actions_as_it_takes_rescaled_to_its_own_bounds():
    members = {"one": boxed([-2], [2]), "three": boxed([0, -1, 5], [1, 3, 6])}
    env = MultiTaskVecEnv(members)
    assert env.action_space == Box(-1.0, 1.0, (3,))
    rows = torch.tensor([[0.5, 9.0, 9.0], [-0.5, 9.0, 9.0], [0.0, 0.5, -0.5], [1.0, -1.0, 0.0]])
    env.step(rows)
    assert members["one"].received[0].tolist() == [[1.0], [-1.0]]
    assert members["three"].received[0].tolist() == [[0.5, 2.0, 5.25], [1.0, -1.0, 5.5]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_ends_of_the_common_space_are_the_bounds_of_every_task_exactly(dtype):
    low, high = [-3.7, 1 / 3, -1.3, 5.0], [0.1, 2 / 3, 0.7, 6.0]
    space = Box(np.array(low, dtype), np.array(high, dtype), dtype=dtype)
    members = [Counting(plan=((9, "c"),), action_space=space) for _ in range(4)]
    vector = SyncVectorEnv([lambda one=one: one for one in members], autoreset_mode=AutoresetMode.SAME_STEP)
    env = MultiTaskVecEnv({"a": GymnasiumVecEnv(vector), "b": boxed([-1] * 4, [1] * 4)})
    env.reset(0)
    env.step(torch.tensor([[-1.0] * 4, [1.0] * 4, [-1.0, 1.0, -1.0, 1.0], [0.9, -0.9, 0.1, 0.3], *[[0.0] * 4] * 2]))
    received = [one.received[0] for one in members]
    assert all(space.contains(action) for action in received)
    np.testing.assert_array_equal(received[:2], [space.low, space.high])
    np.testing.assert_array_equal(received[2], np.where([0, 1, 0, 1], space.high, space.low))


NESTED = Dict(kind=Discrete(3), where=Tuple((Box(-1.0, 1.0, (2,)), MultiDiscrete([2, 4]))))


def test_nested_actions_that_are_alike_reach_every_member_in_their_structure():
    members = {"a": Recorder(1, space=NESTED), "b": Recorder(2, space=Dict(**NESTED.spaces))}
    env = MultiTaskVecEnv(members)
    assert env.action_space == NESTED
    where, numbers = torch.rand(3, 2), torch.tensor([[0, 3], [1, 2], [0, 1]])
    env.step({"kind": torch.tensor([2, 0, 1]), "where": (where, numbers)})
    for member, rows in zip(members.values(), (slice(0, 1), slice(1, 3)), strict=True):
        (action,) = member.received
        assert action["kind"].tolist() == [2, 0, 1][rows]
        assert torch.equal(action["where"][0], where[rows])
        assert torch.equal(action["where"][1], numbers[rows])


# -- masks -------------------------------------------------------------------------------------------------------


class Masking(Recorder):
    """Masks drawn by the number of the step; after a reset the first of them."""

    def __init__(self, num_envs=2, paths=None, space=FOUR):
        super().__init__(num_envs, space=space)
        self.paths = paths

    def mask(self, draw):
        masks = torch.rand(self.num_envs, 4, generator=torch.Generator().manual_seed(draw)) < 0.5
        return masks if self.paths is None else dict.fromkeys(self.paths, masks)

    def reset(self, seed):
        self.draw, self.action_mask = 0, self.mask(0)
        return super().reset(seed)

    def step(self, action):
        self.draw += 1
        self.action_mask = self.mask(self.draw)
        return super().step(action)

    def reward(self, action):
        return torch.ones(self.num_envs)


def test_rows_of_members_without_masks_are_legal_throughout():
    masking = Masking(3)
    env = MultiTaskVecEnv({"a": Recorder(2, space=FOUR), "b": masking, "c": Recorder(1, space=FOUR)})
    env.reset(0)
    for draw in range(3):
        expected = torch.cat((torch.ones(2, 4), masking.mask(draw), torch.ones(1, 4))).bool()
        assert env.action_mask.dtype == torch.bool
        assert torch.equal(env.action_mask, expected)
        env.step(torch.zeros(6, dtype=torch.int64))


def test_masks_of_several_members_stand_one_below_the_other():
    one, other = Masking(1), Masking(2)
    env = MultiTaskVecEnv({"a": one, "b": other})
    env.reset(0)
    env.step(torch.zeros(3, dtype=torch.int64))
    assert torch.equal(env.action_mask, torch.cat((one.mask(1), other.mask(1))))


TREE = Dict(x=FOUR, y=FOUR)


def idle(num_envs):
    return {key: torch.zeros(num_envs, dtype=torch.int64) for key in "xy"}


def test_masks_by_path_are_joined_by_path():
    one, other = Masking(1, "xy", TREE), Masking(2, "xy", TREE)
    env = MultiTaskVecEnv({"a": one, "b": other, "c": Recorder(1, space=TREE)})
    env.reset(0)
    env.step(idle(4))
    assert list(env.action_mask) == ["x", "y"]
    for path in "xy":
        whole = torch.cat((one.mask(1)[path], other.mask(1)[path], torch.ones(1, 4, dtype=torch.bool)))
        assert torch.equal(env.action_mask[path], whole)


@pytest.mark.parametrize(("first", "second"), [("x", "y"), ("x", "xy"), ("xy", "y")])
def test_parts_that_only_some_members_mask_are_free_in_the_others(first, second):
    one, other = Masking(1, first, TREE), Masking(2, second, TREE)
    env = MultiTaskVecEnv({"a": one, "b": other})
    env.reset(0)
    for path in "xy":
        rows = [m.mask(0).get(path, torch.ones(m.num_envs, 4, dtype=torch.bool)) for m in (one, other)]
        assert torch.equal(env.action_mask[path], torch.cat(rows))


def test_without_masks_there_are_none():
    env = MultiTaskVecEnv({"a": Recorder(), "b": Recorder()})
    env.reset(0)
    assert env.action_mask is None
    env.step(torch.zeros(4, dtype=torch.int64))
    assert env.action_mask is None


# -- closing -----------------------------------------------------------------------------------------------------


def test_closing_closes_every_member():
    members = Recorder(), Recorder(), Recorder()
    env = MultiTaskVecEnv(dict(zip("abc", members, strict=True)))
    assert [member.closed for member in members] == [0, 0, 0]
    env.close()
    assert [member.closed for member in members] == [1, 1, 1]


# -- what cannot be joined ---------------------------------------------------------------------------------------

MIXED = r"tasks must have Box actions with one axis, or all the same space; these have disc Discrete\(2\), box Box"
REFUSED = {
    "no member": ({}, "several tasks are asked for, and 0 is given"),
    "one member": ({"a": Recorder()}, "several tasks are asked for, and 1 is given"),
    "Discrete and Box": ({"disc": Recorder(), "box": boxed([-1], [1])}, MIXED),
    "Discrete of other sizes": (
        {"a": Recorder(), "b": Recorder(space=Discrete(3))},
        r"or all the same space; these have a Discrete\(2\), b Discrete\(3\)",
    ),
    "Discrete of other starts": (
        {"a": Recorder(), "b": Recorder(space=Discrete(2, start=1))},
        r"these have a Discrete\(2\), b Discrete\(2, start=1\)",
    ),
    "Box without bounds": (
        {"fine": boxed([-1], [1]), "wild": boxed([-1, -np.inf], [1, 1])},
        r"actions of task wild need bounds.*Box",
    ),
    "actions of other kinds": (
        {"a": Recorder(), "b": Recorder(space=gym.spaces.MultiBinary(3))},
        r"these have a Discrete\(2\), b MultiBinary\(3\)",
    ),
    "nested actions that differ": (
        {"a": Recorder(space=Tuple((TWO_CHOICES,))), "b": Recorder(space=Tuple((TWO_CHOICES, TWO_CHOICES)))},
        r"these have a Tuple\(Discrete\(2\)\), b Tuple\(Discrete\(2\), Discrete\(2\)\)",
    ),
    "Box of several axes": ({"a": boxed([[-1]], [[1]]), "b": boxed([[-1]], [[1]])}, "Box actions with one axis"),
    "observations that are no Box": (
        {"a": Recorder(), "b": Recorder(observes=Discrete(7))},
        r"observations of task b are Discrete\(7\)",
    ),
    "nested observations": (
        {"a": Recorder(), "b": Recorder(observes=Dict(x=Box(-1.0, 1.0, (1,))))},
        "observations of task b are Dict.*accepted where there are several tasks: Box",
    ),
}


@pytest.mark.parametrize(("members", "reason"), REFUSED.values(), ids=REFUSED)
def test_members_that_have_nothing_in_common_are_refused_by_name(members, reason):
    with pytest.raises(ConfigError, match=reason):
        MultiTaskVecEnv(members)


# -- by id -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_envs", "shares"), [(2, (1, 1)), (5, (3, 2)), (8, (4, 4))])
def test_ids_joined_by_a_plus_share_the_environments_evenly(num_envs, shares):
    env = make_env(BOTH, num_envs)
    assert isinstance(env, MultiTaskVecEnv)
    assert env.tasks == tuple(BOTH.split("+"))
    assert tuple(env.task.bincount().tolist()) == shares
    assert env.observation_space.shape == (3 + 2,)
    assert env.action_space == Box(-1.0, 1.0, (1,))
    observation = env.reset(1)
    assert torch.equal(observation[:, 3:], torch.eye(2)[env.task])
    assert (observation[env.task == 1, 2] == 0).all()  # the car observes two numbers
    step = env.step(torch.ones(num_envs, 1))
    assert step.reward.shape == (num_envs,)
    env.close()


def test_a_single_id_and_a_function_are_one_kind_of_environment_with_its_arguments():
    single = make_env("Pendulum-v1", 2, {"g": 3.5})
    made = make_env(partial(gym.make, "Pendulum-v1"), 2)
    for env in (single, made):
        assert isinstance(env, GymnasiumVecEnv)
        assert env.tasks == ()
        assert env.task is None
        assert env.num_envs == 2
    assert [one.unwrapped.g for one in single.env.envs] == [3.5, 3.5]
    for env in (single, made):
        env.close()


WRONG = {
    "an id that comes twice": ("CartPole-v1+CartPole-v1", 4, None, r"task of CartPole-v1\+CartPole-v1 must be another"),
    "too few environments": (BOTH, 1, None, r"num_envs is 1; Pendulum-v1\+Mount.* needs at least 2, one per task"),
    "arguments": (BOTH, 2, {"g": 3.5}, r"env\.kwargs are for a single environment.*Pendulum-v1\+Mount"),
    "an unknown id": ("CartPole-v1+CartPule-v1", 2, None, "CartPule-v1.*Did you mean: `CartPole`"),
    "a missing id": ("CartPole-v1+", 2, None, "cannot make"),
    "Discrete and Box": ("CartPole-v1+Pendulum-v1", 2, None, r"CartPole-v1 Discrete\(2\), Pendulum-v1 Box"),
    "Discrete of other sizes": ("CartPole-v1+Acrobot-v1", 2, None, r"CartPole-v1 Discrete\(2\), Acrobot-v1 Discrete"),
}


@pytest.mark.parametrize(("env", "num_envs", "kwargs", "reason"), WRONG.values(), ids=WRONG)
def test_ids_that_cannot_be_joined_are_refused_by_name(env, num_envs, kwargs, reason):
    with pytest.raises(ConfigError, match=reason):
        make_env(env, num_envs, kwargs)


def test_tasks_of_tasks_are_refused():
    inner = make_env("Pendulum-v1+MountainCarContinuous-v0", 2)
    outer = make_gymnasium("Pendulum-v1", 1)
    with pytest.raises(ConfigError, match="task both consists of tasks"):
        MultiTaskVecEnv({"both": inner, "one": outer})
    for env in (inner, outer):
        env.close()
