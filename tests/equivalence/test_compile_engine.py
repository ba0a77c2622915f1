"""What torch.compile makes of a gradient step does what torch does, to rounding, and is made once."""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiDiscrete
from torch import nn
from torch._dynamo.utils import counters

import levelhead as lh
from levelhead import native
from levelhead.accelerate import CompiledEpochs
from levelhead.builders import build_policy
from levelhead.config import ActionConfig, Config, CriticConfig, MemoryConfig, NetworkConfig, OptimizerConfig, PPOConfig
from levelhead.errors import ConfigError
from levelhead.schedules import Schedule, constant
from parts import (
    CHOICES,
    REALS,
    acted_on,
    batch_of,
    configured_learner,
    learn,
    make_batch,
    make_policy,
    steep_policy,
)
from toys import Chain, make_trainer, same, snapshot

pytestmark = [
    pytest.mark.timeout(600),
    # Of torch's own, on the way through its compiler.
    pytest.mark.filterwarnings("ignore:.*(torch.jit|should not be instantiated).*:DeprecationWarning"),
]

ROWS = 150
STATISTICS = ("mean", "var", "std")
STEEP = OptimizerConfig(learning_rate=Schedule(3e-3, 1e-3))
FEW = {"epochs": 2, "minibatches": 4}
BUSY = PPOConfig(
    **FEW,
    value_clip=constant(0.3),
    value_huber=constant(0.5),
    entropy_coef=Schedule(0.1, 0.0),
    clip_range=Schedule(0.3, 0.1),
    kl_limit=constant(5e-2),
)


class Pair:
    """Two learners that begin alike, of which one compiles; both can be set back to the beginning."""

    def __init__(self, make, options, batch=lambda policy, seed: acted_on(policy, make_batch(policy, ROWS, seed))):
        self.policies = [make(), make()]
        by_torch, compiled = self.policies
        self.learners = [
            configured_learner(by_torch, engine="torch", **options),
            configured_learner(compiled, engine="compile", **options),
        ]
        assert any(isinstance(phase, CompiledEpochs) for phase in self.learners[1].phases)
        self.batch = batch
        self.start = self.state(0), self.state(1)

    def state(self, i):
        return snapshot(self.policies[i]), {name: x.clone() for name, x in self.learners[i].state_dict().items()}

    def outcomes(self, tamper=lambda batch: None, valid=None, iterations=1):
        """Per learner: all that its iterations left, its metrics, and what was not finite."""
        found = []
        for policy, learner, (parameters, state) in zip(self.policies, self.learners, self.start, strict=True):
            policy.load_state_dict(parameters)
            learner.load_state_dict(state)
            metrics = {}
            for i in range(iterations):
                learner.advance(i / iterations, i)
                batch = self.batch(policy, i)
                noise = 0.2 * torch.randn(batch.log_prob.shape, generator=torch.manual_seed(i))
                batch = replace(batch, log_prob=batch.log_prob + noise)
                tamper(batch)
                metrics = learn(learner, batch, valid, iteration=i)
            left = {**snapshot(policy), **{name: x.clone() for name, x in learner.state_dict().items()}}
            found.append((left, metrics, {name: bool(flag) for name, flag in learner.faults().items()}))
        return found

    def agree(self, atol=2e-5, **how):
        (expected, metrics, faults), (given, reported, found) = self.outcomes(**how)
        assert found == faults
        for one, other in ((expected, given), (metrics, reported)):
            assert other.keys() == one.keys()
            for name, x in one.items():
                message = lambda text, name=name: f"{name}: {text}"  # noqa: E731
                torch.testing.assert_close(other[name], x, rtol=2e-3, atol=atol, equal_nan=True, msg=message)
        return faults


@pytest.fixture(scope="module")
def choices():
    def make():
        policy = make_policy(tasks=3, shared=(8,))
        policy.value_head.observe(torch.linspace(5, 9, 30), task=torch.arange(30) % 3)
        return policy

    actor = lh.GroupConfig(constant(1e-3), 1e-8, 0.2)
    options = {"ppo": BUSY, "optimizer": replace(STEEP, weight_decay=0.1, actor=actor)}
    return Pair(make, options)


@pytest.fixture(scope="module")
def reals():
    ppo = PPOConfig(**FEW, advantage="minibatch")
    rate = constant(1e-3)
    optimizer = OptimizerConfig(learning_rate=rate, clip="global", max_grad_norm=0.1, kl_target=constant(1e-2))
    return Pair(lambda: make_policy(REALS), {"objective": "kl", "ppo": ppo, "optimizer": optimizer})


def test_choices_agree_and_are_compiled_once_whatever_the_schedules_do(choices):
    before = counters["stats"]["unique_graphs"]
    choices.agree(iterations=3)
    assert counters["stats"]["unique_graphs"] - before <= 1
    before = counters["stats"]["unique_graphs"]
    choices.agree(iterations=5)
    assert counters["stats"]["unique_graphs"] == before
    assert not counters["graph_break"]


def test_reals_agree_with_rates_that_follow_the_divergence(reals):
    reals.agree(iterations=3)


def test_rows_that_are_not_valid_weigh_nothing(choices):
    choices.agree(valid=torch.arange(ROWS) % 3 > 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["observation", "advantage", "target", "log_prob"])
def test_no_step_is_taken_on_what_is_not_finite_and_it_is_named(choices, reals, what, bad):
    def tamper(batch):
        getattr(batch, what)[0, 17] = bad

    faults = choices.agree(tamper=tamper)
    reals.agree(tamper=tamper)
    assert any(faults.values()) == ((what, bad) != ("log_prob", float("inf")))  # whose ratio is 0
    assert all(p.isfinite().all() for pair in (choices, reals) for p in pair.policies[1].parameters())


def test_steps_end_at_the_limit(choices):
    def tamper(batch):  # as if a very different policy had acted
        batch.parameters.add_(3 * torch.randn(batch.parameters.shape, generator=torch.manual_seed(9)))

    choices.agree(tamper=tamper)
    assert choices.learners[1].control.stopped == 1


def test_the_same_iterations_twice_are_the_same_bit_for_bit(choices, reals):
    for pair in (choices, reals):
        (_, (one, *_)), (_, (other, *_)) = pair.outcomes(iterations=2), pair.outcomes(iterations=2)
        assert same(one, other)


def test_a_run_scales_by_powers_of_two():
    ends = []
    for scale in (1.0, 2.0**20):
        trainer = make_trainer(Chain(), engine="compile", total_steps=640, reward_scale=scale)
        assert trainer.engines.endswith("steps by torch.compile")
        list(trainer)
        left = snapshot(trainer.policy)
        ends.append({name: x for name, x in left.items() if name.removeprefix("value_head.") not in STATISTICS})
    assert same(*ends)


# -- by itself ---------------------------------------------------------------------------------------------------

LONG = {"num_envs": 4, "num_steps": 32, "ppo": PPOConfig(epochs=5, minibatches=4), "total_steps": 128 * 2500}
SQUASHED = ActionConfig(distribution="tanh")


@pytest.mark.parametrize(
    ("changes", "compiled"),
    [
        ({}, True),
        ({"total_steps": LONG["total_steps"] - 1}, True),  # iterations are whole
        ({"total_steps": LONG["total_steps"] - 128}, False),
        ({"engine": "torch"}, False),
        ({"network": NetworkConfig(actor=(512, 512))}, False),
        ({"memory": MemoryConfig("gru", 8)}, False),
        ({"action": ActionConfig()}, not native.available()),
    ],
    ids=["long", "rounded up", "short", "torch", "wide", "memory", "native"],
)
def test_auto_compiles_long_runs_of_small_networks_that_native_code_does_not_take(changes, compiled):
    options = {"engine": "auto", "action": SQUASHED, **LONG, **changes}
    learner = configured_learner(steep_policy(REALS, **options), **options)
    assert all(isinstance(phase, CompiledEpochs) is compiled for phase in learner.phases)
    assert ("torch.compile, as the run is long: it has no TanhGaussianHead" in learner.engine) is compiled


def test_auto_does_not_compile_convolutions():
    options = {"engine": "auto", **LONG}
    policy = steep_policy(observation=Box(0, 255, (36, 36, 1), np.uint8), **options)
    assert "torch.compile" not in configured_learner(policy, **options).engine


# -- what can't be compiled --------------------------------------------------------------------------------------


class Peeking(nn.Module):
    """A layer that looks at numbers on the host."""

    def forward(self, x):
        return x * 2 if float(x.detach().sum()) > 0 else x


class Counting(nn.Module):
    """A layer that does something else whenever it is called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (2 if self.calls % 2 else 3)


def pair_with(layer):
    """Two learners whose actor has such a layer."""

    def make():
        policy = make_policy()
        policy.network.actor.layers[0].append(layer())
        return policy

    return Pair(make, {"ppo": PPOConfig(**FEW)})


def test_a_module_that_cannot_be_compiled_goes_to_torch_with_a_warning():
    pair = pair_with(Peeking)
    with pytest.warns(UserWarning, match="gradient steps by torch after all, as they can't be compiled: .*"):
        (expected, *_), (given, *_) = pair.outcomes()
    assert same(given, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pair.outcomes()


def test_a_module_that_changes_from_step_to_step_does_what_it_does_in_torch():
    pair = pair_with(Counting)
    pair.agree()
    one, other = (policy.network.actor.layers[0][-1].calls for policy in pair.policies)
    assert one == other > 0


def test_hooks_that_come_later_are_called():
    policy, calls = make_policy(), []
    learner = configured_learner(policy, engine="compile", ppo=PPOConfig(**FEW))
    batch = acted_on(policy, make_batch(policy, ROWS))
    learn(learner, batch)
    hook = policy.network.actor.register_forward_hook(lambda *_: calls.append(1))
    learn(learner, batch)
    hook.remove()
    learn(learner, batch)
    assert len(calls) == 8


@pytest.mark.parametrize("what", ["compiler", "headers", "memory", "hook", "backward hook"])
def test_what_stands_in_its_way_is_named_before_anything_is_written(monkeypatch, tmp_path, what):
    monkeypatch.chdir(tmp_path)
    options = {"memory": MemoryConfig("gru", 8)} if what == "memory" else {}
    policy = make_policy(**options)
    match what:
        case "compiler":
            monkeypatch.setenv("CXX", "no-such-compiler")
            with pytest.raises(ConfigError, match=r"there is no C\+\+ compiler, no-such-compiler"):
                lh.train("CartPole-v1", total_steps=64, config=Config("CartPole-v1", engine="compile", device="cpu"))
            assert not list(Path.cwd().iterdir())
        case "headers":
            monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
        case "hook":
            next(policy.parameters()).register_hook(lambda gradient: 0 * gradient)
        case "backward hook":
            policy.network.actor.register_full_backward_hook(lambda *_: None)
        case _:
            pass
    reason = {"compiler": "no-such-compiler", "headers": "Python.h", "memory": "recurrent"}.get(what, "hooks")
    with pytest.raises(ConfigError, match=rf"engine is compile, which doesn't go with this run: .*{reason}"):
        configured_learner(policy, engine="compile", **options)


# -- the wide grid -----------------------------------------------------------------------------------------------

POLICIES = {
    "choices": {},
    "several choices": {"space": MultiDiscrete([3, 2, 5])},
    "reals": {"space": REALS},
    "joint": {"space": Dict({"a": Discrete(3), "b": REALS}), "action": ActionConfig(sees={"b": ["a"]})},
    "gated": {"space": Dict({"a": Discrete(3), "b": REALS}), "action": ActionConfig(gates={"b": {"a": [1]}})},
    "tanh": {"space": REALS, "action": ActionConfig(distribution="tanh")},
    "beta": {"space": REALS, "action": ActionConfig(distribution="beta")},
    "conditioned": {"space": REALS, "action": ActionConfig(sigma="conditioned")},
    **{value: {"value": value} for value in ("runningnorm", "valuenorm", "linear", "symlog", "hlgauss", "twohot")},
}


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_head_agrees(policy):
    options = {"ppo": PPOConfig(**FEW, entropy_coef=constant(0.01)), "optimizer": STEEP}
    Pair(lambda: make_policy(**POLICIES[policy]), options).agree(iterations=2)


LEARNING = {
    "a2c": {"objective": "a2c", "ppo": PPOConfig(epochs=1, minibatches=4)},
    "vpg": {"objective": "vpg", "ppo": PPOConfig(**FEW)},
    "trpo": {"objective": "trpo", "ppo": PPOConfig(**FEW)},
    "dual clip": {"ppo": PPOConfig(**FEW, dual_clip=1.05)},
    "critic apart": {"critic": CriticConfig(joint=False, epochs_before=1, minibatches=5), "ppo": PPOConfig(**FEW)},
    "epochs end": {"ppo": PPOConfig(epochs=3, minibatches=4, kl_limit=constant(1e-3), kl_check="epoch")},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", LEARNING)
def test_every_way_of_learning_agrees(options):
    Pair(make_policy, {"optimizer": STEEP, **LEARNING[options]}).agree(iterations=2)


@pytest.mark.slow
def test_layers_that_are_frozen_before_or_later_stay_as_they_are():
    def make():
        policy = make_policy(shared=(8,))
        policy.network.shared.requires_grad_(False)
        return policy

    pair = Pair(make, {"ppo": PPOConfig(**FEW), "optimizer": STEEP})
    pair.agree()
    for policy in pair.policies:
        policy.action_head.linear.weight.requires_grad_(False)
    pair.agree()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["nature", "impala"])
def test_images_agree(encoder):
    space = Box(0, 255, (1, 36, 36), np.uint8)

    def make():
        network = NetworkConfig((), (8,), (8,), image_encoder=encoder)
        return build_policy(Config("toy", network=network, device="cpu"), space, CHOICES)

    def batch(policy, seed):
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(256, (40, 1, 36, 36), generator=generator, dtype=torch.uint8)
        action = torch.randint(4, (40,), generator=generator)
        log_prob, *rest = torch.randn(4, 40, generator=generator)
        return batch_of(image, action, 0.1 * log_prob - 1.4, *rest)

    # Where gradients are next to nothing, a small eps would make their rounding as large as a step.
    Pair(make, {"ppo": PPOConfig(**FEW), "optimizer": OptimizerConfig(eps=1e-3)}, batch).agree(atol=1e-4)
