"""Gymnasium's vector environments: three autoreset modes, one story."""

import contextlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.toy_text.taxi import TaxiEnv
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from levelhead.envs import GymnasiumVecEnv, make_gymnasium
from levelhead.errors import ConfigError
from levelhead.masks import MASK_KEY
from levelhead.tree import tree_leaves, tree_map
from toys import ONE_NUMBER, PLANS, Counting, counting_envs, expected_story, told_story

every_mode = pytest.mark.parametrize("mode", list(AutoresetMode))


@every_mode
@pytest.mark.parametrize("copy", [True, False])
def test_every_mode_tells_the_story_that_the_environments_tell(mode, copy):
    for i, story in enumerate(told_story(counting_envs(mode, copy=copy), 40)):
        assert len(story) >= 20
        assert story == [x for x, _ in zip(expected_story(i, PLANS[i]), story, strict=False)]


def test_only_rows_of_environments_that_are_being_reset_are_invalid():
    env = counting_envs(AutoresetMode.NEXT_STEP)
    env.reset(0)
    ended = torch.zeros(3, dtype=torch.bool)
    for _ in range(20):
        step = env.step(torch.zeros(3, dtype=torch.int64))
        valid = torch.ones(3, dtype=torch.bool) if step.valid is None else step.valid
        assert torch.equal(valid, ~ended)
        ended = step.terminated | step.truncated
        assert not (ended & ~valid).any()


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_no_row_is_lost_where_environments_reset_at_once(mode):
    assert [len(story) for story in told_story(counting_envs(mode), 40)] == [40] * 3


@every_mode
def test_a_reset_forgets_what_was_under_way(mode):
    env = counting_envs(mode)
    first = told_story(env, 3)  # leaves environments that are due for a reset
    assert told_story(env, 3) == first


@every_mode
def test_ended_rows_hold_their_final_observation_and_all_others_what_comes_next(mode):
    env = counting_envs(mode)
    env.reset(0)
    for _ in range(20):
        step = env.step(torch.zeros(3, dtype=torch.int64))
        ended = step.terminated | step.truncated
        if step.final_observation is not None:
            assert torch.equal(step.final_observation[~ended], step.observation[~ended])
            assert (step.final_observation != step.observation).squeeze(-1)[ended].all()


@pytest.mark.parametrize("mode", [None, "nonsense"])
def test_an_environment_that_does_not_say_how_it_resets_is_refused(mode):
    env = SyncVectorEnv([Counting])
    env.metadata = {} if mode is None else {"autoreset_mode": mode}
    with pytest.raises(ConfigError, match=r"autoreset_mode.*NEXT_STEP, SAME_STEP, DISABLED"):
        GymnasiumVecEnv(env)


def test_arrays_are_shared_with_torch_and_not_copied():
    env = counting_envs(AutoresetMode.SAME_STEP, copy=False)
    array = env.env._observations
    assert env.reset(0).data_ptr() == array.ctypes.data
    observation = env.step(torch.zeros(3, dtype=torch.int64)).observation
    assert observation.data_ptr() == env.env._observations.ctypes.data
    array[0] = 123.0
    assert observation[0].item() == 123.0


def test_attributes_are_those_of_a_single_environment():
    env = make_gymnasium("Pendulum-v1", 3)
    assert env.num_envs == 3
    assert env.observation_space.shape == (3,)
    assert env.action_space == Box(-2.0, 2.0, (1,))
    assert env.reset(1).shape == (3, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_arrive_in_the_dtype_of_the_action_space(dtype):
    space = Box(-1, 1, (2,), dtype)
    env = make_gymnasium(lambda: Counting(action_space=space), 2)
    env.reset(0)
    action = torch.rand(2, 2)
    env.step(action)
    for one, row in zip(env.env.envs, action, strict=True):
        assert one.received[-1].dtype == dtype
        assert np.array_equal(one.received[-1], row.numpy())
        assert space.contains(one.received[-1])


def test_the_same_seed_starts_the_same_episodes():
    one, again, other = (make_gymnasium("CartPole-v1", 3).reset(seed) for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert len(one.unique(dim=0)) == 3


def test_arguments_reach_the_constructor():
    env = make_gymnasium("Pendulum-v1", 2, {"g": 3.5})
    assert [one.unwrapped.g for one in env.env.envs] == [3.5, 3.5]


@pytest.mark.parametrize(
    ("env", "kwargs"), [("CartPoleTypo-v1", {}), ("Pendulum-v1", {"gravity": 1}), ("gone:X-v0", {})]
)
def test_an_environment_that_cannot_be_made_is_named(env, kwargs):
    with pytest.raises(ConfigError, match=env):
        make_gymnasium(env, 1, kwargs)


def test_closing_reaches_the_environments():
    closed = []

    class Closing(gym.Env):
        observation_space = action_space = ONE_NUMBER

        def close(self):
            closed.append(self)

    make_gymnasium(Closing, 2).close()
    assert len(closed) == 2


# -- nested spaces -------------------------------------------------------------------------------------------------


class Nested(Counting):
    """A counting environment whose number, its remainder by 7 and two of its bits are observed in a tree."""

    observation_space = Dict(
        number=Box(-np.inf, np.inf, (2,)), rest=Tuple((Discrete(7), Dict(bits=MultiBinary(2), lone=Box(-9e9, 9e9, ()))))
    )

    def __init__(self, index=0, plan=PLANS[0], action_space=None):
        super().__init__(index, plan, action_space or Tuple((Discrete(2),)))

    def _observe(self):
        number = int(super()._observe()[0])
        bits = np.array([number & 1, number >> 1 & 1], np.int8)
        tree = {"rest": (number % 7, {"lone": np.float32(2 * number), "bits": bits})}
        return {**tree, "number": np.array([number, -number], np.float32)}

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)

    def step(self, action):
        self.received.append(action)
        self.step_count += 1
        length, kind = self.plan[self.episode % len(self.plan)]
        ended = self.step_count == length
        reward = float(self._observe()["number"][0]) / 4
        return self._observe(), reward, ended and kind in "tb", ended and kind in "cb", {}


def nested_envs(mode, action_space=None, **options):
    makers = [lambda i=i, plan=plan: Nested(i, plan, action_space) for i, plan in enumerate(PLANS)]
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=mode, **options))


class OneNumber:
    """Nested environments as those that observe their number alone; what else they observe must agree with it."""

    def __init__(self, env):
        self.env, self.num_envs = env, env.num_envs

    def number(self, tree):
        number, rest = tree["number"], tree["rest"]
        whole = number[:, 0].long()
        assert list(tree) == ["number", "rest"]
        assert torch.equal(number[:, 1], -number[:, 0])
        assert torch.equal(rest[0], whole % 7)
        assert torch.equal(rest[1]["bits"], torch.stack((whole & 1, whole >> 1 & 1), 1).to(torch.int8))
        assert torch.equal(rest[1]["lone"], 2 * number[:, 0])
        return number[:, :1]

    def reset(self, seed):
        return self.number(self.env.reset(seed))

    def step(self, action):
        step = self.env.step((action,))
        final = step.final_observation
        return step._replace(
            observation=self.number(step.observation),
            final_observation=None if final is None else self.number(final),
        )


@every_mode
@pytest.mark.parametrize("copy", [True, False])
def test_nested_observations_tell_the_same_story_true_final_ones_included(mode, copy):
    for i, story in enumerate(told_story(OneNumber(nested_envs(mode, copy=copy)), 40)):
        assert len(story) >= 20
        assert story == [x for x, _ in zip(expected_story(i, PLANS[i]), story, strict=False)]


ACTIONS = Dict(
    [
        ("where", Box(-1.0, 1.0, (2, 1), np.float64)),
        ("kind", Discrete(3, start=5)),
        ("more", Tuple((MultiDiscrete([2, 9], dtype=np.int32), MultiBinary([2, 1]), Dict(deep=Discrete(2))))),
    ]
)


@every_mode
def test_nested_actions_arrive_in_the_structure_types_and_numbers_of_the_space(mode):
    env = nested_envs(mode, ACTIONS)
    env.reset(0)
    generator = torch.Generator().manual_seed(0)
    resetting = torch.zeros(3, dtype=torch.bool)
    for _ in range(8):
        where = torch.rand(3, 2, 1, generator=generator) * 2 - 1
        kind = torch.randint(5, 8, (3,), generator=generator)
        numbers, bits, deep = (torch.randint(2, s, generator=generator) for s in ((3, 2), (3, 2, 1), (3,)))
        # Keys may come in any order; heads keep reals in float32 and all others in int64.
        before = [len(one.received) for one in env.env.envs]
        step = env.step({"more": (numbers, bits, {"deep": deep}), "kind": kind, "where": where})
        for i, one in enumerate(env.env.envs):
            assert len(one.received) == before[i] + int(not (mode is AutoresetMode.NEXT_STEP and resetting[i]))
            if len(one.received) == before[i]:
                continue
            action = one.received[-1]
            assert ACTIONS.contains(action)
            assert action["where"].dtype == np.float64
            assert action["more"][0].dtype == np.int32
            assert action["more"][1].dtype == np.int8
            np.testing.assert_array_equal(action["where"], where[i].numpy().astype(np.float64))
            np.testing.assert_array_equal(action["more"][0], numbers[i])
            np.testing.assert_array_equal(action["more"][1], bits[i])
            assert (action["kind"], action["more"][2]["deep"]) == (kind[i], deep[i])
        resetting = step.terminated | step.truncated


def test_actions_of_another_structure_are_refused():
    env = nested_envs(AutoresetMode.SAME_STEP)
    env.reset(0)
    with pytest.raises(ValueError, match="trees differ"):
        env.step(torch.zeros(3, dtype=torch.int64))


@every_mode
def test_an_observation_may_come_as_a_tuple_of_numbers(mode):
    class Plain(Counting):
        def _observe(self):
            return tuple(super()._observe().tolist())

    makers = [lambda i=i, plan=plan: Plain(i, plan) for i, plan in enumerate(PLANS)]
    for i, story in enumerate(told_story(GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=mode)), 10)):
        assert story == [x for x, _ in zip(expected_story(i, PLANS[i]), story, strict=False)]


# -- masks ---------------------------------------------------------------------------------------------------------

FOUR = Discrete(4)
PAIR = MultiDiscrete([2, 2])
TREE = Dict(kind=FOUR, more=Tuple((PAIR, Box(-1.0, 1.0, (1,)))))


def legal(index, episode, step):
    """Of four choices, by where an environment is; no two places that follow each other are alike."""
    return [(index + 2 * episode + step + j) % 3 != 0 for j in range(4)]


class Masked(Counting):
    """A counting environment that says what is legal: in the info, in the observation, or with a form of its own.

    Args:
        form: of masks, made of four bools.
        silent: whether nothing is said at the end of an episode.
        skips: (episode, step) at which nothing is said either.
    """

    def __init__(self, index, plan, place="info", action_space=FOUR, form=None, silent=False, skips=()):
        super().__init__(index, plan, action_space)
        self.place, self.silent, self.skips = place, silent, skips
        self.form = form or (lambda bits: np.array(bits, np.int8))
        if place == "observation":
            self.observation_space = Dict(x=ONE_NUMBER, **{MASK_KEY: MultiBinary(4)})

    def _told(self, observation, ended=False):
        mask = self.form(legal(self.index, self.episode, self.step_count))
        if self.place == "observation":
            return {"x": observation, MASK_KEY: mask & (not ended)}, {}
        quiet = (ended and self.silent) or (self.episode, self.step_count) in self.skips
        return observation, {} if quiet else {MASK_KEY: mask, "other": 1}

    def reset(self, *, seed=None, options=None):
        return self._told(super().reset(seed=seed)[0])

    def step(self, action):
        observation, reward, terminated, truncated, _ = super().step(0)
        observation, info = self._told(observation, terminated or truncated)
        return observation, reward, terminated, truncated, info


def masked_envs(mode, plans=PLANS, make=Masked, **options):
    makers = [lambda i=i, plan=plan: make(i, plan, **options) for i, plan in enumerate(plans)]
    return GymnasiumVecEnv(SyncVectorEnv(makers, autoreset_mode=mode))


def expected_masks(env, ignored):
    """What is legal where each environment stands now; everything where its action will be ignored."""
    places = [legal(one.index, one.episode, one.step_count) for one in env.env.envs]
    return torch.tensor(places) | ignored.unsqueeze(1)


def step_through(env, action, check, steps=25):
    """Calls `check(rows whose action will be ignored, step or first observation)` after the reset and every step."""
    first = env.reset(0)
    check(torch.zeros(env.num_envs, dtype=torch.bool), first)
    for _ in range(steps):
        step = env.step(action)
        ended = step.terminated | step.truncated
        check(ended & (env.mode is AutoresetMode.NEXT_STEP), step)


IDLE = torch.zeros(3, dtype=torch.int64)


@every_mode
@pytest.mark.parametrize(
    "options",
    [
        {"place": "observation"},
        {},
        {"silent": True},
        {"form": list},
        {"form": lambda bits: np.array(bits), "silent": True},
        {"form": list, "silent": True},
    ],
    ids=["observed", "info", "info, none at ends", "info of lists", "info of bools", "info of lists, none at ends"],
)
def test_masks_are_those_of_the_observation_that_the_next_action_is_chosen_on(mode, options):
    env = masked_envs(mode, **options)
    kept = []

    def check(ignored, _):
        assert env.action_mask.dtype == torch.bool
        expected = expected_masks(env, ignored)
        assert torch.equal(env.action_mask, expected)
        kept.append((env.action_mask, expected))

    step_through(env, IDLE, check)
    assert len(kept) == 26
    assert all(torch.equal(mask, expected) for mask, expected in kept)  # none was written over


@every_mode
def test_observed_masks_are_no_part_of_the_observation(mode):
    env = masked_envs(mode, place="observation")
    assert env.observation_space == Dict(x=ONE_NUMBER)
    finals = []

    def check(_, given):
        trees = [given] if isinstance(given, dict) else [given.observation, given.final_observation]
        for tree in trees:
            assert tree is None or list(tree) == ["x"]
        finals.extend(trees[1:])

    step_through(env, IDLE, check)
    assert (mode is AutoresetMode.NEXT_STEP) == all(final is None for final in finals)


FORMS = {
    "several in a tuple": (PAIR, lambda b: (np.array(b[:2]), np.array(b[2:])), None),
    "several side by side": (PAIR, lambda b: np.array(b), None),
    "bits": (MultiBinary(2), lambda b: np.array(b).reshape(2, 2), None),
    "one part of a dict": (TREE, lambda b: {"kind": np.array(b)}, ["kind"]),
    "another part of a dict": (TREE, lambda b: {"more": (np.array(b), None)}, ["more/0"]),
    "all parts": (
        TREE,
        lambda b: {"kind": np.array(b), "more": ((np.array(b[:2]), np.array(b[2:])), None)},
        ["kind", "more/0"],
    ),
    "a tuple in a dict": (Dict(pair=PAIR), lambda b: {"pair": (np.array(b[:2]), np.array(b[2:]))}, ["pair"]),
    "a list in a dict in a dict": (Dict(inner=Dict(kind=FOUR)), lambda b: {"inner": {"kind": b}}, ["inner/kind"]),
    "a tuple": (Tuple((FOUR, PAIR)), lambda b: (np.array(b), np.array(b)), ["0", "1"]),
    "a dict in a tuple": (Tuple((Dict(kind=FOUR), FOUR)), lambda b: ({"kind": np.array(b)}, None), ["0/kind"]),
}


@every_mode
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(
    ("space", "form", "paths"),
    FORMS.values(),
    ids=FORMS,
)
def test_masks_of_any_action_come_in_any_form(mode, silent, space, form, paths):
    env = masked_envs(mode, action_space=space, form=form, silent=silent)
    zero = tree_map(lambda x: torch.from_numpy(np.asarray(x)), env.env.action_space.sample())

    def check(ignored, _):
        expected = expected_masks(env, ignored)
        masks = {None: env.action_mask} if paths is None else env.action_mask
        assert list(masks) == ([None] if paths is None else paths)
        assert all(torch.equal(mask, expected) for mask in tree_leaves(masks))

    step_through(env, zero, check)


@every_mode
def test_a_mask_that_is_missing_names_the_environments(mode):
    class Forgetful(Masked):
        def __init__(self, index, plan):
            super().__init__(index, plan, skips=[(0, 2)] if index in (1, 2) else ())

    env = masked_envs(mode, [((9, "t"),)] * 4, Forgetful)
    env.reset(0)
    action = torch.zeros(4, dtype=torch.int64)
    env.step(action)
    with pytest.raises(ConfigError, match=r"info of environments \[1, 2\] holds no 'action_mask'"):
        env.step(action)


@every_mode
def test_a_mask_that_is_missing_after_a_reset_names_the_environments(mode):
    env = masked_envs(mode, [((1, "t"),), ((9, "c"),)], skips=[(1, 0)])
    env.reset(0)
    if mode is AutoresetMode.NEXT_STEP:
        env.step(IDLE[:2])
    with pytest.raises(ConfigError, match=r"info of environments \[0\] holds no 'action_mask'"):
        env.step(IDLE[:2])


def test_masks_that_only_some_environments_give_are_refused():
    class Some(Masked):
        def __init__(self, index, plan):
            super().__init__(index, plan, skips=[(0, 0)] if index == 1 else ())

    with pytest.raises(ConfigError, match=r"environments \[1\]"):
        masked_envs(AutoresetMode.SAME_STEP, make=Some).reset(0)


@every_mode
def test_masks_that_come_only_later_are_refused(mode):
    env = masked_envs(mode, skips=[(0, 0)], plans=[((9, "t"),)])
    env.reset(0)
    assert env.action_mask is None
    with pytest.raises(ConfigError, match="holds 'action_mask' after a step, and did not after reset"):
        env.step(IDLE[:1])


@every_mode
@pytest.mark.parametrize("first", [False, True])
def test_masks_whose_parts_come_and_go_are_refused_or_free_but_never_another_tree(mode, first):
    def form(bits):
        return {"kind": np.array(bits), "more": (np.array([1, 0, 1, 1]) if bits[0] == first else None, None)}

    env = masked_envs(mode, [((5, "t"),)], action_space=TREE, form=form)
    env.reset(0)
    keys = env.action_mask.keys()
    zero = tree_map(lambda x: torch.from_numpy(np.asarray(x)), env.env.action_space.sample())
    with contextlib.suppress(ConfigError):
        for _ in range(12):
            env.step(zero)
            assert env.action_mask.keys() == keys


@every_mode
def test_a_mask_that_does_not_fit_the_actions_is_refused(mode):
    env = masked_envs(mode, action_space=Discrete(5))
    with pytest.raises(ConfigError, match=r"has 4 entries for each environment; Discrete\(5\) has 5 choices"):
        env.reset(0)


@every_mode
def test_environments_without_masks_have_none(mode):
    env = counting_envs(mode)
    env.reset(0)
    assert env.action_mask is None
    env.step(IDLE)
    assert env.action_mask is None


def test_an_environment_of_gymnasiums_own_says_what_is_legal():
    env = make_gymnasium(TaxiEnv, 4)
    generator = torch.Generator().manual_seed(0)
    env.reset(0)
    for _ in range(20):
        expected = [one.unwrapped.action_mask(one.unwrapped.s) for one in env.env.envs]
        assert np.array_equal(env.action_mask, np.array(expected) == 1)
        env.step(env.action_mask.float().multinomial(1, generator=generator).squeeze(1))
    env.close()


def test_a_vector_environment_of_its_own_kind_may_give_one_mask_for_all():
    class Vectorized(VectorEnv):
        """Steps all at once and marks nothing with an underscore."""

        metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
        num_envs, single_observation_space, single_action_space = 2, ONE_NUMBER, FOUR

        def reset(self, *, seed=None, options=None):
            self.mask = np.array([[1, 0, 1, 0], [0, 1, 1, 1]])
            return np.zeros((2, 1), np.float32), {MASK_KEY: self.mask}

        def step(self, actions):
            self.mask = 1 - self.mask
            never = np.zeros(2, bool)
            return np.zeros((2, 1), np.float32), np.zeros(2), never, never, {MASK_KEY: self.mask}

    env = GymnasiumVecEnv(Vectorized())
    env.reset(0)
    assert env.action_mask.tolist() == [[True, False, True, False], [False, True, True, True]]
    env.step(IDLE[:2])
    assert env.action_mask.tolist() == [[False, True, False, True], [True, False, False, False]]
