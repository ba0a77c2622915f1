"""Native code does what torch does, to rounding, for whatever it accepts; and says no to the rest."""

from dataclasses import replace

import pytest
import torch
from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete
from torch import nn

import levelhead as lh
from levelhead import native
from levelhead.accelerate import NativeEpochs, learning_refusal
from levelhead.actions import MultiCategoricalHead
from levelhead.builders import build_policy
from levelhead.config import (
    ActionConfig,
    Config,
    CriticConfig,
    MemoryConfig,
    NetworkConfig,
    OptimizerConfig,
    PPOConfig,
)
from levelhead.errors import ConfigError
from levelhead.objectives import ClipObjective
from levelhead.schedules import Schedule, constant
from parts import (
    CHOICES,
    INSTRUCTION_SETS,
    OBSERVATIONS,
    REALS,
    acted_on,
    configured_learner,
    learn,
    make_batch,
    make_policy,
)
from toys import Chain, Matching, make_trainer, same, snapshot

pytestmark = pytest.mark.skipif(not native.available(), reason="built without a compiler")

MANY, SWITCHES, REAL = MultiDiscrete([3, 2, 5]), MultiBinary(4), Box(-1.0, 1.0, (1,))
SPACES = {"one of 4": CHOICES, "3 of 3, 2, 5": MANY, "4 switches": SWITCHES, "3 reals": REALS, "1 real": REAL}
STEEP = OptimizerConfig(learning_rate=constant(3e-3))

OPTIONS = {
    "defaults": {},
    "dual clip": {"ppo": {"dual_clip": 1.05}},
    "entropy": {"ppo": {"entropy_coef": constant(0.1)}},
    "penalty": {"objective": "kl", "ppo": {}},
    "a2c": {"objective": "a2c", "ppo": {"epochs": 1}},
    "vpg": {"objective": "vpg", "ppo": {}},
    "trpo": {"objective": "trpo", "ppo": {}},
    "value clip": {"ppo": {"value_clip": constant(0.3)}},
    "Huber": {"ppo": {"value_huber": constant(0.5)}},
    "both": {"ppo": {"value_clip": constant(0.3), "value_huber": constant(0.5), "value_coef": constant(0.2)}},
    "advantages by minibatch": {"ppo": {"advantage": "minibatch"}},
    "global clip": {"optimizer": {"clip": "global", "max_grad_norm": 0.1}},
    "decay": {"optimizer": {"weight_decay": 0.1}},
    "groups": {"optimizer": {"actor": lh.GroupConfig(constant(1e-3), 1e-8, 0.2), "eps": 1e-3}},
    "critic apart": {"critic": CriticConfig(joint=False, epochs_before=1, epochs_after=2, minibatches=5), "ppo": {}},
    "limit": {"ppo": {"kl_limit": constant(2e-3), "epochs": 6}},
}


def options_of(name):
    options = dict(OPTIONS[name])
    options["ppo"] = PPOConfig(**{"epochs": 3, "minibatches": 4, **options.get("ppo", {})})
    return {**options, "optimizer": replace(STEEP, **options.get("optimizer", {}))}


def outcomes(make, options, sets=INSTRUCTION_SETS, batch=None, valid=None):
    """Everything that an iteration leaves, by torch and then by native code for each instruction set."""
    found = []
    for engine, instructions in [("torch", None), *(("native", name) for name in sets)]:
        with pytest.MonkeyPatch.context() as patch:
            if instructions:
                patch.setattr(native, "best_instruction_set", lambda name=instructions: name)
            policy = make()
            learner = configured_learner(policy, engine=engine, **options)
            learner.advance(0.0, 0)
            assert any(isinstance(phase, NativeEpochs) for phase in learner.phases) == (engine == "native")
            rows = acted_on(policy, make_batch(policy, 150)) if batch is None else batch(policy)
            moved = 0.2 * torch.randn(rows.log_prob.shape[1], generator=torch.manual_seed(1))
            rows = replace(rows, log_prob=rows.log_prob + moved)
            metrics = learn(learner, rows, valid)
            found.append(({**snapshot(policy), **{n: x.clone() for n, x in learner.state_dict().items()}}, metrics))
    return found


def agree(found):
    (expected, metrics), *others = found
    for given, reported in others:
        assert given.keys() == expected.keys()
        assert reported.keys() == metrics.keys()
        for name, x in expected.items():
            torch.testing.assert_close(given[name], x, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")
        for name, x in metrics.items():
            torch.testing.assert_close(reported[name], x, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("space", SPACES)
def test_with_every_option_and_space(space, options):
    agree(outcomes(lambda: make_policy(SPACES[space]), options_of(options)))


@pytest.mark.parametrize("options", ["defaults", "entropy", "penalty", "vpg", "critic apart"])
@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu"])
@pytest.mark.parametrize(
    ("shared", "actor", "critic"),
    [((), (), ()), ((8,), (), ()), ((16, 7), (9,), ()), ((), (33,), (1, 3, 70)), ((64,), (64, 64), (64, 64))],
    ids=str,
)
def test_with_every_activation_and_shape(options, activation, shared, actor, critic):
    network = NetworkConfig(shared, actor, critic, activation)

    def make():
        config = Config("toy", network=network, device="cpu")
        policy = build_policy(config, OBSERVATIONS, CHOICES)
        nn.init.normal_(policy.value_head.linear.weight, generator=torch.manual_seed(0))
        return policy

    agree(outcomes(make, options_of(options)))


@pytest.mark.parametrize("options", ["defaults", "advantages by minibatch", "penalty", "entropy"])
@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("rows", [512, 513, 1301])
def test_with_minibatches_that_are_gone_through_in_parts(rows, space, options):
    whole = {**options_of(options), "ppo": replace(options_of(options).get("ppo", PPOConfig()), minibatches=1)}

    def make():
        network = NetworkConfig((16,), (9,), (8, 8), "tanh")
        return build_policy(Config("toy", network=network, device="cpu"), OBSERVATIONS, space)

    agree(outcomes(make, whole, batch=lambda policy: acted_on(policy, make_batch(policy, rows))))


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("value", ["popart", "runningnorm", "valuenorm", "linear", "symlog", "sqrt"])
def test_with_every_scalar_value_head(value, tasks):
    def make():
        policy = make_policy(tasks=tasks, value=value)
        policy.value_head.observe(torch.linspace(5, 9, 30), task=torch.arange(30) % tasks if tasks > 1 else None)
        return policy

    agree(outcomes(make, options_of("both")))


@pytest.mark.parametrize("options", ["defaults", "entropy", "penalty"])
@pytest.mark.parametrize("space", [CHOICES, MANY, SWITCHES])
def test_with_masks(space, options):
    def batch(policy):
        rows = make_batch(policy, 150)
        head = policy.action_head
        legal = torch.rand(1, 150, head.code_dim, generator=torch.manual_seed(3)) < 0.6
        code = head.code(rows.action) > 0
        mask = legal | code  # what was done was legal
        logits = torch.where(mask, torch.randn(mask.shape, generator=torch.manual_seed(4)), -1e36)
        return replace(rows, action_mask=mask, parameters=logits)

    agree(outcomes(lambda: make_policy(space), options_of(options), batch=batch))


@pytest.mark.parametrize(
    "action",
    [
        ActionConfig(sigma="fixed"),
        ActionConfig(sigma="scheduled", std=Schedule(0.5, 0.1)),
        ActionConfig(std=constant(0.3)),
    ],
    ids=lambda action: action.sigma,
)
def test_with_every_sigma_that_is_the_same_everywhere(action):
    agree(outcomes(lambda: make_policy(REALS, action=action), options_of("penalty")))


@pytest.mark.parametrize("space", [CHOICES, REALS])
def test_rows_that_are_not_valid_weigh_nothing(space):
    valid = torch.arange(150) % 3 > 0
    agree(outcomes(lambda: make_policy(space), options_of("both"), valid=valid))


def test_many_iterations_stay_together():
    ends = []
    for engine in ("torch", "native"):
        trainer = make_trainer(Chain(), engine=engine, total_steps=4000)
        *_, last = trainer
        ends.append((snapshot(trainer.policy), last.metrics["rollout/ep_rew_mean"]))
    for name, x in ends[0][0].items():
        torch.testing.assert_close(ends[1][0][name], x, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shared", [(), (16,)], ids=str)
def test_with_two_threads_it_is_the_same_bit_for_bit(monkeypatch, options, shared):
    network, asked, run = NetworkConfig(shared, (33,), (20, 8)), [], native.run_epochs
    monkeypatch.setattr(native, "run_epochs", lambda plan: (asked.append(plan.threads), run(plan)))

    def outcome(threads):
        policy = build_policy(Config("toy", network=network, device="cpu"), OBSERVATIONS, REALS)
        learner = configured_learner(policy, engine="native", threads=threads, **options_of(options))
        metrics = learn(learner, acted_on(policy, make_batch(policy, 150)))
        return {**snapshot(policy), **learner.state_dict(), **metrics}

    one = outcome(1)
    assert set(asked) == {1}
    asked.clear()
    for _ in range(5):
        assert same(outcome(2), one)
    assert set(asked) == {2}


@pytest.mark.parametrize("env", [Chain, Matching])
def test_the_same_run_twice_is_the_same_bit_for_bit(env):
    policies = []
    for _ in range(2):
        trainer = make_trainer(env(), engine="native", total_steps=2000)
        assert [turn.iteration for turn in trainer]
        policies.append(snapshot(trainer.policy))
    assert same(*policies)


# -- what is not finite ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -500.0])
@pytest.mark.parametrize("what", ["observation", "advantage", "target", "log_prob"])
@pytest.mark.parametrize("space", [CHOICES, REALS])
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
def test_no_step_is_taken_on_it_and_it_is_named(monkeypatch, instructions, space, what, bad):
    monkeypatch.setattr(native, "best_instruction_set", lambda: instructions)
    found = []
    for engine in ("torch", "native"):
        network = NetworkConfig(actor=(8,), critic=(8,), activation="elu")
        policy = build_policy(Config("toy", network=network, device="cpu"), OBSERVATIONS, space)
        learner = configured_learner(policy, engine=engine, ppo=PPOConfig(epochs=1, minibatches=3))
        learner.advance(0.0, 0)
        batch = make_batch(policy, 30)
        getattr(batch, what)[0, 17] = bad
        learn(learner, batch)
        assert all(p.isfinite().all() for p in policy.parameters())
        found.append((snapshot(policy), {name: bool(flag) for name, flag in learner.faults().items()}))
    assert found[0][1] == found[1][1]
    for name, x in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], x, rtol=1e-4, atol=1e-6)


def test_where_the_rollout_is_broken_nothing_moves():
    policy = make_policy()
    learner = configured_learner(policy, engine="native")
    before = snapshot(policy)
    learn(learner, make_batch(policy, 30), healthy=False)
    assert same(snapshot(policy), before)


def test_what_stops_at_the_limit_is_named_too():
    for engine in ("torch", "native"):
        policy = make_policy()
        learner = configured_learner(policy, engine=engine, ppo=PPOConfig(minibatches=1, kl_limit=constant(1e-9)))
        learner.advance(0.0, 0)
        batch = acted_on(policy, make_batch(policy, 30))
        nn.init.normal_(policy.action_head.linear.weight)
        batch.target[0, 3] = torch.nan
        learn(learner, batch)
        assert {name for name, broken in learner.faults().items() if broken} == {"loss", "critic gradient"}


@pytest.mark.parametrize("size", [1, 1e6])
def test_advantages_that_differ_by_rounding_alone_are_all_the_same(size):
    def batch(policy):
        rows = make_batch(policy, 150)
        return replace(rows, advantage=size * (0.5 + 6e-8 * (torch.arange(150) % 2).float().unsqueeze(0)))

    agree(outcomes(make_policy, options_of("advantages by minibatch"), batch=batch))


# -- what it doesn't accept --------------------------------------------------------------------------------------

REFUSED = {
    "memory": ({"memory": MemoryConfig("gru", 8)}, "LSTM|GRU"),
    "conditioned sigma": ({"action": ActionConfig(sigma="conditioned")}, "ConditionedSigma"),
    "bounded sigma": ({"action": ActionConfig(log_std_bounds=(-2.0, 2.0))}, "has bounds"),
    "tanh": ({"action": ActionConfig(distribution="tanh")}, "TanhGaussianHead"),
    "beta": ({"action": ActionConfig(distribution="beta")}, "BetaHead"),
    "histogram": ({"value": "hlgauss"}, "HLGaussValueHead"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_lacks_is_named_and_auto_takes_torch(case):
    options, reason = REFUSED[case]
    policy = make_policy(REALS, **options)
    assert configured_learner(policy, engine="auto", **options).engine.startswith("torch: ")
    with pytest.raises(ConfigError, match=rf"engine is native, which doesn't go with this run: .*({reason})"):
        configured_learner(policy, engine="native", **options)


class Louder(ClipObjective):
    """One of the user's own."""


class Other(MultiCategoricalHead):
    """The same."""


@pytest.mark.parametrize(
    "part", ["objective", "hook", "twice", "dtype", "alpha", "frozen", "gradient hook", "head", "wide"]
)
def test_parts_of_your_own_go_to_torch(part):
    network = NetworkConfig(actor=(8, 8), critic=(8,), activation="elu")
    policy = build_policy(Config("toy", network=network, device="cpu"), OBSERVATIONS, CHOICES)
    layers = policy.network.actor.layers[0]
    match part:
        case "hook":
            layers[0].register_forward_hook(lambda *_: None)
        case "twice":
            layers[2] = nn.Linear(8, 8)
            layers.append(layers[2])
        case "dtype":
            policy.double()
        case "alpha":
            layers[1] = nn.ELU(0.5)
        case "frozen":
            layers[0].weight.requires_grad_(False)
        case "gradient hook":
            layers[0].weight.register_hook(lambda gradient: 0 * gradient)
        case "head":
            policy.action_head.linear = nn.Linear(8, 4, bias=False)
        case "wide":
            layers[0] = nn.Linear(3, 2**16)
        case _:
            pass
    objective = Louder(constant(0.2)) if part == "objective" else "clip"
    assert configured_learner(policy, objective, engine="auto").engine.startswith("torch: ")


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": OptimizerConfig(kl_target=constant(0.01))},
        {"ppo": PPOConfig(kl_limit=constant(0.01), kl_check="epoch")},
    ],
)
def test_what_every_epoch_or_minibatch_decides_goes_to_torch(options):
    assert configured_learner(make_policy(), engine="auto", **options).engine.startswith("torch: ")


def test_parameters_may_move_in_memory_and_be_frozen_later():
    found = []
    for engine in ("torch", "native"):
        policy = make_policy()
        learner = configured_learner(policy, engine=engine)
        policy.share_memory()
        learner.advance(0.0, 0)
        learn(learner, make_batch(policy, 30))
        policy.network.actor.layers[0][0].weight.requires_grad_(False)
        learn(learner, make_batch(policy, 30), iteration=1)
        found.append(snapshot(policy))
    for name, x in found[0].items():
        torch.testing.assert_close(found[1][name], x, rtol=1e-4, atol=1e-6)


def by_torch(learner, monkeypatch, given, iteration):
    """Whether the steps of an iteration are torch's."""
    called = []
    with monkeypatch.context() as patch:
        patch.setattr(native, "run_epochs", called.append)
        learn(learner, given, iteration=iteration)
    return not called


def test_a_gradient_hook_counts_as_long_as_it_is_there(monkeypatch):
    policy = make_policy()
    learner, given = configured_learner(policy, engine="native"), make_batch(policy, 30)
    weight, found = policy.network.actor.layers[0][0].weight, [by_torch(learner, monkeypatch, given, 0)]
    for i in (1, 3):  # torch keeps the table of the first hook for the second
        hook = weight.register_hook(lambda gradient: gradient)
        found.append(by_torch(learner, monkeypatch, given, i))
        hook.remove()
        found.append(by_torch(learner, monkeypatch, given, i + 1))
    assert found == [False, True, False, True, False]


def reduce_(learner):
    learner.criterion.policy.network.actor.reduced = True


def soften(learner):
    learner.criterion.policy.network.actor.layers[0][1].alpha = 0.5


def replace_objective(learner):
    learner.criterion.objective = Louder(constant(0.2))


@pytest.mark.parametrize("change", [reduce_, soften, replace_objective], ids=lambda f: f.__name__)
def test_what_native_code_lacks_goes_to_torch_from_the_next_iteration_on(change, monkeypatch):
    network = NetworkConfig(actor=(8,), critic=(8,), activation="elu")
    policy = build_policy(Config("toy", network=network, device="cpu"), OBSERVATIONS, CHOICES)
    learner, given = configured_learner(policy, engine="native"), make_batch(policy, 30)
    assert not by_torch(learner, monkeypatch, given, 0)
    change(learner)
    assert by_torch(learner, monkeypatch, given, 1)


def test_layers_that_do_not_fit_each_other_are_refused():
    policy = make_policy(shared=(6,))
    learner = configured_learner(policy, engine="native")
    policy.network.actor.layers[0][0] = nn.Linear(5, 8)
    with pytest.raises(ValueError, match="doesn't take what that answers"):
        learn(learner, make_batch(make_policy(), 30))


def test_observations_of_another_size_are_refused():
    policy = make_policy()
    given = make_batch(policy, 30)
    with pytest.raises(ValueError, match="observations of shape"):
        learn(configured_learner(policy, engine="native"), replace(given, observation=given.observation[..., :2]))


@pytest.mark.parametrize(
    ("changes", "tasks"),
    [({"action": torch.full((1, 30), 4)}, 1), ({"task": None}, 3), ({"task": torch.full((1, 30), 3)}, 3)],
)
def test_numbers_that_would_lead_out_of_memory_are_refused(changes, tasks):
    policy = make_policy(tasks=tasks)
    learner = configured_learner(policy, engine="native")
    with pytest.raises(ValueError, match=r"an action is not among|rows don't say"):
        learn(learner, replace(make_batch(policy, 30), **changes))


def test_a_library_of_other_sources_is_not_called(monkeypatch):
    monkeypatch.setattr(native, "LAYOUT", 0)
    native._library.cache_clear()
    try:
        assert not native.available()
    finally:
        native._library.cache_clear()


def test_one_of_older_sources_which_lacks_functions_is_not_called_either(monkeypatch):
    class Older:
        @staticmethod
        def levelhead_layout():
            return 0

    monkeypatch.setattr(native.ctypes, "CDLL", lambda _: Older)
    native._library.cache_clear()
    try:
        assert not native.available()
        assert native.best_instruction_set() == "portable"
    finally:
        native._library.cache_clear()


def test_auto_says_which_instructions_it_uses():
    assert configured_learner(make_policy(), engine="auto").engine == f"native code, {native.best_instruction_set()}"
    assert configured_learner(make_policy(), engine="torch").engine == "torch: it was asked for"


def test_without_the_library_everything_runs_in_torch(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    learner = configured_learner(make_policy(), engine="auto")
    assert "not built" in learner.engine
    assert learning_refusal(learner.criterion, None) is not None


def test_spaces_of_one_choice_and_many():
    for space in (Discrete(1), Discrete(70), MultiDiscrete([1, 2])):
        agree(outcomes(lambda space=space: make_policy(space), options_of("entropy")))
