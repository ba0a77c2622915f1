"""The phase in which the actor's layers learn from values: when it comes, what moves, and what it leaves alone."""

import itertools
from dataclasses import replace

import pytest
import torch

import levelhead as lh
from levelhead.auxiliary import Auxiliary
from levelhead.config import AuxiliaryConfig, Config, MemoryConfig, NetworkConfig, OptimizerConfig, PPOConfig
from levelhead.errors import ConfigError
from levelhead.schedules import constant
from parts import CHOICES, REALS, acted_on, configured_learner, learn, make_batch, make_policy
from toys import Chain, Matching, make_trainer, same, snapshot

NAMES = set(Auxiliary.NAMES)
every_space = pytest.mark.parametrize("space", [CHOICES, REALS])


def phase_of(learner) -> Auxiliary:
    (phase,) = learner.later
    assert isinstance(phase, Auxiliary)
    return phase


def alone(policy, **options):
    """A learner that does nothing else, in every iteration."""
    optimizer = OptimizerConfig(learning_rate=constant(3e-3))
    learner = configured_learner(policy, auxiliary=AuxiliaryConfig(every=1, **options), optimizer=optimizer)
    learner.phases = []
    learner.advance(0.0, 0)
    return learner


def divergence(policy, batch):
    """Mean KL of what acted from what would act now."""
    rows = batch.take(torch.arange(batch.begins.shape[1]))
    with torch.no_grad():
        features, _ = policy.features(rows.observation, rows.state, rows.begins)
        new = policy.action_head.evaluate(features, rows.action)
        return policy.action_head.kl(rows.parameters, new.parameters).mean().item()


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_comes_every_so_many_iterations(every):
    trainer = make_trainer(Matching(), auxiliary=AuxiliaryConfig(every=every), total_steps=100_000)
    came = [turn.iteration for turn in itertools.islice(trainer, 7) if set(turn.metrics) >= NAMES]
    assert came == list(range(every, 8, every))


def test_iterations_before_it_are_as_without():
    without, late = (
        make_trainer(Matching(), auxiliary=AuxiliaryConfig(every=every), total_steps=100_000) for every in (0, 3)
    )
    for _ in range(2):
        next(without)
        next(late)
    assert same(snapshot(without.policy), snapshot(late.policy))
    next(without)
    next(late)
    assert not same(snapshot(without.policy), snapshot(late.policy))


@every_space
def test_the_actors_layers_learn_values_and_the_policy_stays(space):
    outcomes = {}
    for coef in (0.0, 1.0, 30.0):
        policy = make_policy(space, shared=(8,))
        policy.action_head.linear.weight.data *= 100  # one that says much of what its features are
        learner = alone(policy, clone_coef=constant(coef), epochs=10)
        batch = acted_on(policy, make_batch(policy, 60))
        before = {name: x.clone() for name, x in policy.named_parameters()}
        losses = [learn(learner, batch)["train/auxiliary_loss"].item() for _ in range(10)]
        assert losses[-1] < 0.98 * losses[0]
        moved = {name for name, x in policy.named_parameters() if not torch.equal(x, before[name])}
        assert any(name.startswith("network.actor") for name in moved)
        assert any(name.startswith("network.shared") for name in moved)
        assert any(name.startswith("value_head") for name in moved)
        outcomes[coef] = divergence(policy, batch)
    assert outcomes[30.0] < 0.5 * outcomes[1.0] < 0.25 * outcomes[0.0]


@every_space
def test_the_divergence_is_from_a_copy_that_does_not_move_along(space):
    policy = make_policy(space)
    learner = alone(policy)
    batch = make_batch(policy, 12)
    opinion = learner.criterion.opinion(batch)
    kept = [x.clone() for x in opinion.parameters]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(x, y) for x, y in zip(opinion.parameters, kept, strict=True))
    assert not any(x.requires_grad for x in opinion.parameters)


def test_targets_that_waited_are_of_the_same_reward_when_the_axis_has_moved(monkeypatch):
    policy = make_policy()
    learner = configured_learner(policy, auxiliary=AuxiliaryConfig(every=2))
    head, phase, batch = policy.value_head, phase_of(learner), make_batch(policy, 12)
    learner.advance(0.0, 0)
    rewards = head.denormalize(batch.target)
    learn(learner, batch)
    head.observe(torch.linspace(50, 100, 30))
    seen = []
    real = phase.loss.of
    watched = phase.loss._replace(of=lambda rows, weight: seen.append(rows.target) or real(rows, weight))
    monkeypatch.setattr(phase, "loss", watched)
    learn(learner, make_batch(policy, 12, seed=1))
    first = torch.cat(seen[: len(seen) // phase.split.epochs])
    expected = torch.cat((head.normalize(rewards), make_batch(policy, 12, seed=1).target), 1).flatten()
    torch.testing.assert_close(first.sort().values, expected.sort().values)


def test_rows_that_are_not_valid_weigh_nothing():
    def after(tampered):
        policy = make_policy(REALS)
        learner = alone(policy)
        batch, valid = make_batch(policy, 12), torch.arange(12) % 3 > 0
        if tampered:
            observation, target = batch.observation.clone(), batch.target.clone()
            observation[:, ~valid], target[:, ~valid] = torch.nan, torch.inf
            batch = replace(batch, observation=observation, target=target)
        learn(learner, batch, valid)
        return snapshot(policy)

    assert same(after(tampered=False), after(tampered=True))


def test_rollouts_that_wait_keep_their_own_rows():
    policy = make_policy()
    learner = configured_learner(policy, auxiliary=AuxiliaryConfig(every=2))
    learner.advance(0.0, 0)
    valid = torch.ones(12, dtype=torch.bool)  # written over by the next rollout, as a collector does
    valid[3] = False
    learn(learner, make_batch(policy, 12), valid)
    (kept,) = phase_of(learner)._kept
    valid.fill_(True)
    assert kept.valid.sum() == 11


def test_the_penalty_answers_to_the_policy_phases_alone():
    moved = []
    for every in (0, 1):
        policy = make_policy()
        learner = configured_learner(policy, "kl", auxiliary=AuxiliaryConfig(every=every))
        learner.advance(0.0, 0)
        moved.append(learn(learner, acted_on(policy, make_batch(policy, 60)))["train/kl"].item())
    assert moved[0] == moved[1]


def test_where_episodes_begin_anew_it_begins_anew():
    trainer = make_trainer(Matching(), auxiliary=AuxiliaryConfig(every=3), total_steps=100_000)
    next(trainer)
    trainer.restart_episodes()
    came = [set(next(trainer).metrics) >= NAMES for _ in range(3)]
    assert came == [False, False, True]


def test_without_health_nothing_moves():
    policy = make_policy()
    learner = alone(policy)
    before = snapshot(policy)
    learn(learner, make_batch(policy, 12), healthy=False)
    assert same(snapshot(policy), before)


@pytest.mark.parametrize(
    "options",
    [{"objective": objective, "ppo": PPOConfig(epochs=1, minibatches=2)} for objective in ("kl", "trpo", "a2c", "vpg")]
    + [
        {"memory": MemoryConfig("gru", 8)},
        {"memory": MemoryConfig("lstm", 8, sharing="separate")},
        {"value": "twohot"},
    ],
    ids=lambda options: str(next(iter(options.values()))),
)
@pytest.mark.parametrize("env", [Chain, Matching])
def test_it_goes_with_every_objective_memory_and_head(env, options):
    trainer = make_trainer(env(), auxiliary=AuxiliaryConfig(every=2), total_steps=100_000, **options)
    for turn in itertools.islice(trainer, 4):
        if turn.iteration % 2 == 0:
            assert -1e-6 < turn.metrics["train/clone_kl"] < 1
            assert turn.metrics["train/auxiliary_loss"] > 0


def test_the_layer_is_part_of_the_state():
    learners = [alone(make_policy(seed=seed)) for seed in (1, 2)]
    learn(learners[0], make_batch(learners[0].criterion.policy, 12))
    learners[1].load_state_dict(learners[0].state_dict())
    assert same(phase_of(learners[1]).state_dict(), phase_of(learners[0]).state_dict())
    assert phase_of(learners[1]).layer.weight.abs().sum() > 0


def test_building_it_draws_no_random_number():
    before = torch.get_rng_state()
    configured_learner(make_policy(), auxiliary=AuxiliaryConfig(every=1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": -1}, r"auxiliary\.every is -1"),
        ({"every": 1, "epochs": 0}, r"auxiliary\.epochs is 0"),
        ({"every": 1, "clone_coef": constant(-1.0)}, r"auxiliary\.clone_coef is -1"),
        ({"epochs": 2}, r"auxiliary\.epochs has nothing to act on: auxiliary\.every is 0"),
        ({"clone_coef": constant(2.0)}, r"auxiliary\.clone_coef has nothing to act on"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        AuxiliaryConfig(**options)


@pytest.mark.parametrize(
    ("options", "most"),
    [({}, 48), ({"checkpoint_every": 0}, 97), ({"checkpoint_every": 5000}, 4), ({"total_steps": 1000}, 1)],
)
def test_a_phase_that_would_never_come_is_refused(options, most):
    options = {"env_id": "toy", "total_steps": 100_000, **options}
    Config(**options, auxiliary=AuxiliaryConfig(every=most))
    with pytest.raises(ConfigError, match=rf"auxiliary\.every is {most + 1}; accepted: at most {most}, "):
        Config(**options, auxiliary=AuxiliaryConfig(every=most + 1))


def test_an_actor_without_layers_has_nothing_to_learn(tmp_path):
    network = NetworkConfig(actor=())
    config = Config("CartPole-v1", auxiliary=AuxiliaryConfig(every=1), network=network)
    with pytest.raises(ConfigError, match=r"auxiliary\.every has nothing to act on: the actor has no layers"):
        lh.train("CartPole-v1", config=config, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
