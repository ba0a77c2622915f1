"""The native stepping loop writes down what the one in Python does, and leaves to it what is more than that."""

import signal
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from levelhead import native
from levelhead.accelerate import NativeActor
from levelhead.builders import build_policy
from levelhead.collector import Collector
from levelhead.config import ActionConfig, Config
from levelhead.envs import GymnasiumVecEnv, make_gymnasium
from levelhead.errors import ConfigError
from levelhead.rollout import Rollout
from levelhead.tree import by_path
from toys import PLANS, SMALL, Counting, config, make_trainer

pytestmark = pytest.mark.skipif(not native.has_loop() or not native.available(), reason="built without headers")

STEPS = 40


class Calm(Counting):
    """An environment whose episodes last, so that there are steps in which nothing happens."""

    observation_space = Box(-np.inf, np.inf, (3,))
    PLAN = ((11, "t"), (30, "c"), (1, "c"), (9, "b"))

    def __init__(self, index=0, plan=PLAN, action_space=None):
        super().__init__(index, plan, action_space)

    def _observe(self):
        return super()._observe()[0] / 1000 + np.arange(3, dtype=np.float32)


class Answer(NamedTuple):
    observation: object
    reward: object
    terminated: object
    truncated: object
    infos: object


class Tampering(SyncVectorEnv):
    """What steps answer is changed on its way: `tamper` takes the number of the call and the answer."""

    def __init__(self, tamper):
        super().__init__([Calm, Calm])
        self.tamper, self.calls = tamper, 0

    def step(self, actions):
        self.calls += 1
        return self.tamper(self.calls, super().step(actions))


@pytest.fixture
def stretches(monkeypatch):
    """The steps that native code took at once, call by call."""
    taken = []
    stretch = native._stepping.stretch

    def counting(*arguments):
        t, answer = stretch(*arguments)
        taken.append(t - arguments[-1])
        return t, answer

    monkeypatch.setattr(native._stepping, "stretch", counting)
    return taken


def rollouts(env, count=3, **options) -> list[Rollout]:
    policy = build_policy(config(env, **options), env.observation_space, env.action_space)
    collector = Collector(env, policy, STEPS, seed=1, halves=[(env, NativeActor(policy, arrays=env.arrays))])
    return [collector.collect(i).clone() for i in range(count)]


def require_same(make, **options):
    """Rollouts of environments made anew, with the native loop and without."""
    taken = rollouts(make(), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_stepping", None)
        expected = rollouts(make(), **options)
    for one, other in zip(taken, expected, strict=True):
        ours, theirs = by_path(vars(one)), by_path(vars(other))
        assert ours.keys() == theirs.keys()
        for name, x in ours.items():
            assert x is theirs[name] is None or torch.equal(x, theirs[name]), name


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("plans", [PLANS, [Calm.PLAN, ((7, "c"), (400, "t"))]], ids=["restless", "calm"])
def test_every_mode_of_resetting(mode, plans, stretches):
    makes = [lambda i=i, plan=plan: Calm(i, plan) for i, plan in enumerate(plans)]
    require_same(lambda: GymnasiumVecEnv(SyncVectorEnv(makes, autoreset_mode=mode)))
    assert (sum(stretches) > STEPS) == (plans is not PLANS)


@pytest.mark.parametrize(
    ("env_id", "backend"),
    [
        ("CartPole-v1", "vector"),
        ("CartPole-v1", "sync"),
        ("Pendulum-v1", "sync"),
        ("Acrobot-v1", "sync"),
        ("HalfCheetah-v5", "sync"),  # observes float64
    ],
)
def test_environments_of_gymnasiums(env_id, backend, stretches):
    require_same(lambda: make_gymnasium(env_id, 5, backend=backend))
    assert sum(stretches) > STEPS


@pytest.mark.parametrize(
    "space", [Discrete(3, start=5), Box(-0.5, 0.5, (2,)), Box(0.0, 1.0, (2,), np.float64)], ids=str
)
def test_actions_arrive_as_they_would(space):
    received = []

    def make():
        envs = [Calm(i, action_space=space) for i in range(2)]
        received.append([env.received for env in envs])
        return GymnasiumVecEnv(SyncVectorEnv([lambda env=env: env for env in envs]))

    require_same(make, action=ActionConfig())
    ours, theirs = np.array(received[0]), np.array(received[1])
    assert ours.dtype == theirs.dtype
    assert np.array_equal(ours, theirs)


def test_whoever_keeps_actions_keeps_them_and_may_write_to_them(stretches):
    class Keeping(SyncVectorEnv):
        def step(self, actions):
            answer = super().step(actions)
            kept.append((actions, actions.copy()))
            return answer

    class Writing(SyncVectorEnv):
        def step(self, actions):
            answer = super().step(actions)
            actions[:] = 0
            return answer

    kept = []
    expected, written = (rollouts(GymnasiumVecEnv(kind([Calm, Calm])))[-1].action for kind in (Keeping, Writing))
    assert all(np.array_equal(now, then) for now, then in kept)
    assert torch.equal(written, expected)
    assert sum(stretches) > STEPS


KINDS = {
    "fortran": lambda answer: (np.asfortranarray(answer[0]), *answer[1:]),
    "backwards": lambda answer: (answer[0][:, ::-1], *answer[1:]),
    "float64": lambda answer: (answer[0].astype(np.float64), *answer[1:]),
    "rewards of float32": lambda answer: (answer[0], answer[1].astype(np.float32), *answer[2:]),
    "flags apart": lambda answer: (*answer[:2], np.repeat(answer[2], 2)[::2], *answer[3:]),
    "a named tuple": lambda answer: Answer(*answer),
}
OTHER_KINDS = {
    "big-endian": lambda answer: (answer[0].astype(">f4"), *answer[1:]),
    "float64 backwards": lambda answer: (answer[0].astype(np.float64)[:, ::-1], *answer[1:]),
    "float16": lambda answer: (answer[0].astype(np.float16), *answer[1:]),
    "rewards apart": lambda answer: (answer[0], np.repeat(answer[1], 2)[::2], *answer[2:]),
    "whole rewards": lambda answer: (answer[0], answer[1].astype(np.int64), *answer[2:]),
    "a list of rewards": lambda answer: (answer[0], list(answer[1]), *answer[2:]),
    "infos": lambda answer: (*answer[:4], {"something": 1}),
    "a list": list,
}


@pytest.mark.parametrize("kind", [*KINDS, *OTHER_KINDS])
def test_arrays_of_every_kind(kind, stretches):
    tamper = {**KINDS, **OTHER_KINDS}[kind]
    require_same(lambda: GymnasiumVecEnv(Tampering(lambda _, answer: tamper(answer))))
    assert stretches
    assert (sum(stretches) > STEPS) == (kind in KINDS)


def test_buffers_that_are_written_over_are_copied_from_in_time(stretches):
    class Reusing(Tampering):
        def __init__(self):
            super().__init__(self._reuse)
            self.buffers = None

        def _reuse(self, _, answer):
            self.buffers = self.buffers or tuple(x.copy() for x in answer[:4])
            for buffer, x in zip(self.buffers, answer, strict=False):
                buffer[:] = x
            return *self.buffers, answer[4]

    reused, fresh = (rollouts(GymnasiumVecEnv(env))[-1] for env in (Reusing(), SyncVectorEnv([Calm, Calm])))
    for name in ("observation", "reward", "terminated", "truncated", "valid"):
        assert torch.equal(getattr(reused, name), getattr(fresh, name)), name
    assert sum(stretches) > STEPS


@pytest.mark.parametrize(("part", "name"), list(enumerate(["observation", "reward", "terminated", "truncated"])))
@pytest.mark.parametrize(
    "reshape",
    [lambda x: x[:1], lambda x: x[..., None], lambda x: np.repeat(x, 2, -1), lambda x: x[..., :1], lambda x: x.all()],
    ids=["fewer", "deeper", "wider", "narrower", "none"],
)
def test_arrays_of_another_shape_are_refused_as_python_does(part, name, reshape, stretches):
    def changed(call, answer):
        return tuple(reshape(x) if call == 5 and i == part else x for i, x in enumerate(answer))

    failures = []
    for loop in (native._stepping, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_stepping", loop)
            with pytest.raises(Exception, match=r"shape|broadcast|dimension|iterable") as caught:
                rollouts(GymnasiumVecEnv(Tampering(changed)))
            failures.append((type(caught.value), str(caught.value)))
    assert failures[0] == failures[1]
    assert stretches == [4]


@pytest.mark.parametrize("answer", [None, (), ("too", "few"), tuple("abcdef")], ids=["nothing", "empty", "two", "six"])
def test_what_is_no_answer_is_refused_as_python_does(answer, stretches):
    for loop in (native._stepping, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_stepping", loop)
            with pytest.raises(TypeError, match="_answer"):
                rollouts(GymnasiumVecEnv(Tampering(lambda call, given: given if call < 5 else answer)))
    assert stretches == [4]


def test_masks_that_come_only_later_are_named(stretches):
    def add(call, answer):
        return *answer[:4], {"action_mask": np.ones((2, 2), np.int8)} if call == 5 else {}

    with pytest.raises(ConfigError, match="'action_mask' after a step, and did not after reset"):
        rollouts(GymnasiumVecEnv(Tampering(add)))
    assert stretches == [4]


def test_what_an_environment_raises_arrives(stretches):
    def fail(call, answer):
        if call == 15:
            raise RuntimeError("the robot has fallen over")
        return answer

    with pytest.raises(RuntimeError, match="fallen over"):
        rollouts(GymnasiumVecEnv(Tampering(fail)))
    assert sum(stretches) > 5


def test_rewards_too_large_for_float32_are_numpys_to_write(stretches):
    def grow(call, answer):
        return answer[0], answer[1] + (1e300 if call == 5 else 0), *answer[2:]

    with pytest.warns(RuntimeWarning, match="overflow"):
        (rollout,) = rollouts(GymnasiumVecEnv(Tampering(grow)), 1)
    assert bool(rollout.reward[4].isinf().all())
    assert stretches[0] == 4


class Doubled(GymnasiumVecEnv):
    """Has a say in every step."""

    def receive(self):
        step = super().receive()
        return step._replace(reward=2 * step.reward)


def test_a_class_of_ones_own_is_asked_for_every_step(stretches):
    plain, doubled = (rollouts(kind(SyncVectorEnv([Calm, Calm])), 1)[0].reward for kind in (GymnasiumVecEnv, Doubled))
    assert torch.equal(doubled, 2 * plain)
    assert len(stretches) > 0
    stretches.clear()
    rollouts(Doubled(SyncVectorEnv([Calm, Calm])), 1)
    assert not stretches


def test_a_run_trains_alike_and_says_where_there_is_none(monkeypatch):
    def trained():
        trainer = make_trainer(make_gymnasium("CartPole-v1", 4, backend="vector"), total_steps=1000)
        for _ in trainer:
            pass
        return trainer

    ours = trained()
    assert "looped" not in ours.engines
    monkeypatch.setattr(native, "_stepping", None)
    theirs = trained()
    assert "steps looped over in Python, whose headers were missing at installation" in theirs.engines
    for name, x in ours.policy.state_dict().items():
        assert torch.equal(x, theirs.policy.state_dict()[name]), name


def test_what_is_written_to_must_be_arrays():
    actor = np.zeros(1)
    with pytest.raises(TypeError, match="arrays that are contiguous"):
        native._stepping.stretch(0, 0, [actor], gym.Env.step, (actor, actor, actor, [0.0]), 0)


def test_a_signal_is_heard_between_two_steps_whatever_they_are_written_in():
    steps, policy = 10**6, build_policy(Config("toy", network=SMALL, device="cpu"), Calm.observation_space, Discrete(2))
    observations, rewards = torch.zeros(steps + 1, 1, 3), torch.zeros(steps, 1)
    flags = [torch.zeros(steps, 1, dtype=torch.bool) for _ in range(2)]
    actor = NativeActor(policy, arrays=True)
    with torch.no_grad():
        noise = policy.action_head.noise((steps, 1), torch.Generator())
        actor.start(observations, torch.zeros(steps, 1), noise, policy.network.initial_state(1))
    stretch = actor.stretch([observations, rewards, *flags])
    answer = (np.zeros((1, 3), np.float32), np.ones(1), np.zeros(1, bool), np.zeros(1, bool), {})
    step = partial(dict.get, {0: answer}, 0)  # no line of Python
    assert step(None) is answer

    def interrupt(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            stretch(0, step)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert 0 < rewards.sum() < steps
