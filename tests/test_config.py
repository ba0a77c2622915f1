"""The config: what it refuses, and that nothing in it is without effect."""

import math

import pytest

import levelhead as lh
from fields import leaves
from levelhead.schedules import Schedule, constant

OPTIMIZER_GROUPS = ("optimizer.shared", "optimizer.actor", "optimizer.critic")


FIELDS = dict(leaves())
REALS = [name for name, hint in FIELDS.items() if hint in (float, float | None)]

OUT_OF_RANGE = [
    *(("total_steps", x) for x in (0, -5)),
    *(("num_envs", x) for x in (0, -1)),
    *(("num_steps", x) for x in (0, -1)),
    *(("eval_episodes", x) for x in (0, -1)),
    ("seed", -1),
    ("threads", -1),
    ("eval_every", -1),
    ("checkpoint_every", -1),
    *(("keep_checkpoints", x) for x in (1, 0, -1)),
    ("write_failure", "ignore"),
    *(("reward_scale", x) for x in (0.0, -1.0, 2.0**-121, 2.0**121)),
    ("value", "popat"),
    ("device", "gpu"),
    ("backend", "fast"),
    ("engine", "fast"),
    ("env.workers", -1),
    *(("env.timeout", x) for x in (0.0, -1.0)),
    ("env.max_restarts", -1),
    ("network.shared", (0,)),
    ("network.actor", (64, 0)),
    ("network.critic", (-1,)),
    ("network.activation", "gelu"),
    ("network.image_encoder", "resnet"),
    ("network.precision", "float16"),
    ("parallel.shards", -1),
    *(("parallel.timeout", x) for x in (0.0, -1.0)),
    *(("parallel.cutoff", x) for x in (0.0, 1.5)),
    ("memory.kind", "rnn"),
    *(("memory.size", x) for x in (0, -1)),
    ("memory.place", "between"),
    ("memory.sharing", "both"),
    ("action.distribution", "uniform"),
    ("action.bounds", "wrap"),
    ("action.sigma", "learned"),
    *(("action.std", x) for x in (constant(0.0), constant(-1.0), Schedule(1.0, 0.0))),
    ("action.std_hidden", (0,)),
    *(("action.log_std_bounds", x) for x in ((1.0, 1.0), (2.0, -5.0), (1.0,), (-1.0, 0.0, 1.0))),
    *(("action.color", x) for x in (-0.1, 3.1)),
    *(("action.gates", x) for x in ({"1": {}}, {"1": {"0": [1], "2": [1]}}, {"1": ["0"]}, {"1": {"0": [0.5]}})),
    *(("action.sees", x) for x in ({"1": "0"}, {"1": [0]})),
    ("head.beta", constant(1.0)),
    ("head.beta", constant(-0.1)),
    ("head.beta", Schedule(0.9, 1.0)),
    *(("ppo.gamma", x) for x in (-0.1, 1.1)),
    *(("ppo.lam", x) for x in (-0.1, 1.1)),
    *(("ppo.epochs", x) for x in (0, -1)),
    *(("ppo.minibatches", x) for x in (0, 8 * 128 + 1)),
    *(("ppo.chunk", x) for x in (0, -1)),
    ("ppo.burn_in", -1),
    ("ppo.clip_range", constant(0.0)),
    ("ppo.clip_range", Schedule(0.2, -0.1)),
    ("ppo.clip_range", Schedule(0.0, 0.2)),
    ("objective", "ppo"),
    *(("clip_reward", x) for x in (0.0, -1.0)),
    ("targets", "td"),
    ("baseline", "median"),
    ("credit", "all"),
    ("ppo.advantage", "batch"),
    *(("ppo.n_step", x) for x in (0, -1)),
    ("ppo.freeze_actor", -1),
    *(("ppo.dual_clip", x) for x in (1.0, 0.5, -3.0)),
    *(("ppo.kl_target", x) for x in (constant(0.0), Schedule(0.1, 0.0))),
    *(("ppo.kl_limit", x) for x in (constant(0.0), Schedule(0.1, -0.1))),
    ("ppo.kl_check", "iteration"),
    *(("ppo.value_huber", x) for x in (constant(0.0), Schedule(1.0, -1.0))),
    *((f"critic.{name}", -1) for name in ("epochs_before", "epochs_after")),
    *(("critic.minibatches", x) for x in (0, -1)),
    ("auxiliary.every", -1),
    *(("auxiliary.epochs", x) for x in (0, -1)),
    *(("auxiliary.clone_coef", x) for x in (constant(-1.0), Schedule(1.0, -1.0))),
    ("optimizer.clip", "value"),
    ("optimizer.weight_decay", -0.1),
    ("optimizer.warmup", -1),
    *(("optimizer.kl_target", x) for x in (constant(0.0), Schedule(0.1, 0.0))),
    ("ppo.entropy_coef", Schedule(0.1, -0.1)),
    *(("ppo.value_coef", x) for x in (constant(0.0), Schedule(0.5, -0.5))),
    *(("ppo.value_clip", x) for x in (constant(0.0), Schedule(0.2, 0.0))),
    *(
        (f"{group}.{name}", x)
        for group in ("optimizer", *OPTIMIZER_GROUPS)
        for name, x in (
            ("learning_rate", Schedule(1e-3, -1e-3)),
            ("eps", 0.0),
            ("eps", -1e-8),
            ("max_grad_norm", 0.0),
            ("max_grad_norm", -1.0),
        )
    ),
    *((name, x) for name in REALS for x in (math.nan, math.inf, -math.inf)),
    *((name, 64.5) for name, hint in FIELDS.items() if hint in (int, int | None)),
]


@pytest.mark.parametrize(("field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_by_name_with_what_is_accepted(with_fields, field, value):
    with pytest.raises(lh.ConfigError, match=rf"^{field} is .*accepted: \S"):
        with_fields(lh.Config("CartPole-v1"), {field: value})


def test_every_field_with_a_range_has_a_value_outside_it_in_the_table():
    free = {
        "env_id",
        "run_dir",
        "imports",
        "env.kwargs",
        "network.normalize_observation",
        "normalize_reward",
        "overlap",
        "double_buffer",
        "critic.joint",
    }
    assert {field for field, _ in OUT_OF_RANGE} == set(FIELDS) - free


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("ppo.gamma", (0.0, 1.0)),
        ("ppo.lam", (0.0, 1.0)),
        ("ppo.minibatches", (1, 8 * 128)),
        ("head.beta", (constant(0.0), Schedule(0.9, 0.999))),
        ("ppo.entropy_coef", (constant(0.0), Schedule(0.05, 0.0))),
        ("ppo.clip_range", (Schedule(0.1, 0.0),)),
        ("optimizer.learning_rate", (constant(0.0), Schedule(3e-4, 0.0))),
        ("checkpoint_every", (None, 0, 1)),
        ("keep_checkpoints", (None, 2)),
        ("network.actor", ((), (1,))),
    ],
)
def test_the_ends_of_a_range_belong_to_it(with_fields, field, values):
    for value in values:
        with_fields(lh.Config("CartPole-v1"), {field: value})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"memory.size": 64}, r"memory\.size has nothing to act on: memory\.kind is none"),
        ({"action.std": Schedule(1.0, 0.1)}, r"action\.std linear.*needs action\.sigma scheduled"),
        ({"eval_episodes": 3}, r"eval_episodes.*eval_every is 0"),
        ({"num_envs": 2, "num_steps": 2, "ppo.minibatches": 5}, r"ppo\.minibatches is 5.*at most 4"),
        ({"targets": "mc", "ppo.lam": 0.9}, r"ppo\.lam has nothing to act on: targets is mc"),
        ({"targets": "nstep", "ppo.lam": 0.9}, r"ppo\.lam has nothing to act on: targets is nstep"),
        *(
            ({"targets": targets, "ppo.n_step": 3}, rf"ppo\.n_step has nothing to act on: targets is {targets}")
            for targets in ("gae", "mc", "vtrace")
        ),
        ({"optimizer.kl_target": constant(0.01), "optimizer.warmup": 3}, r"optimizer\.warmup has nothing to act on"),
        (
            {"objective": "a2c", "ppo.epochs": 1, "ppo.minibatches": 1, "ppo.kl_limit": constant(0.1)},
            r"ppo\.kl_limit has nothing to act on",
        ),
        (
            {"ppo.epochs": 1, "ppo.kl_limit": constant(0.1), "ppo.kl_check": "epoch"},
            r"ppo\.kl_limit has nothing to act on",
        ),
        ({"ppo.advantage": "minibatch", "ppo.minibatches": 513}, r"ppo\.advantage is minibatch, .* one row"),
        ({"targets": "vtrace", "ppo.epochs": 1}, r"targets vtrace has nothing to act on.*first epoch it is gae"),
        *(
            ({"targets": "vtrace", "objective": objective, "ppo.epochs": epochs}, r"targets vtrace has nothing")
            for objective, epochs in (("trpo", 4), ("vpg", 4), ("a2c", 1))
        ),
        (
            {"baseline": "mean", "num_envs": 1, "ppo.advantage": "none"},
            r"baseline mean.*num_envs is 1; accepted: none, value",
        ),
        *(
            (
                {"baseline": baseline, "ppo.advantage": advantage},
                rf"baseline {baseline} has nothing to act on: ppo\.advantage {advantage}",
            )
            for baseline in ("none", "mean")
            for advantage in ("rollout", "minibatch")
        ),
        *(
            ({"objective": objective, "ppo.epochs": 1, field: value}, rf"{field} has nothing.*objective is {objective}")
            for objective in ("kl", "trpo", "a2c", "vpg")
            for field, value in (("ppo.clip_range", constant(0.1)), ("ppo.dual_clip", 3.0))
        ),
        *(
            (
                {"objective": objective, "ppo.epochs": 1, "ppo.kl_target": constant(0.02)},
                rf"ppo\.kl_target has nothing to act on: objective is {objective}",
            )
            for objective in ("clip", "a2c", "vpg")
        ),
        ({"objective": "a2c"}, r"ppo\.epochs is 4; accepted: 1 with objective a2c"),
        *(
            ({"objective": objective, **changes}, rf"{field} has nothing to act on: objective is {objective}")
            for objective in ("trpo", "vpg")
            for field, changes in (
                (r"ppo\.kl_limit", {"ppo.kl_limit": constant(0.02)}),
                (r"critic\.epochs_before", {"critic.epochs_before": 1}),
                (r"critic\.epochs_after", {"critic.epochs_after": 1}),
                (r"critic\.joint", {"critic": lh.CriticConfig(joint=False, epochs_after=1)}),
                (r"optimizer\.kl_target", {"optimizer.kl_target": constant(0.02)}),
            )
        ),
        *(
            (
                {"objective": "trpo", f"optimizer.{group}.eps": 1e-3},
                rf"optimizer\.{group} .*step has a length of its own",
            )
            for group in ("shared", "actor")
        ),
        ({"ppo.kl_check": "epoch"}, r"ppo\.kl_check has nothing to act on: there is no ppo\.kl_limit"),
        ({"critic.minibatches": 2}, r"critic\.minibatches has nothing to act on"),
        ({"critic.joint": False}, r"critic\.joint is False.*would never learn"),
        *(
            (
                {"optimizer.clip": "global", f"optimizer.{group}.max_grad_norm": 1.0},
                rf"optimizer\.{group}\.max_grad_norm has nothing to act on: the clip is global",
            )
            for group in ("shared", "actor", "critic")
        ),
        *(
            (
                {f"optimizer.{field}": rate, "optimizer.kl_target": constant(0.01)},
                r"optimizer\.learning_rate is .*positive constant where optimizer\.kl_target",
            )
            for field, rate in (
                ("learning_rate", Schedule(1e-3, 0.0)),
                ("learning_rate", constant(0.0)),
                ("actor.learning_rate", Schedule(1e-3, 0.0)),
                ("shared.learning_rate", constant(0.0)),
            )
        ),
    ],
)
def test_a_combination_that_cannot_work_is_refused_and_says_why(with_fields, changes, reason):
    with pytest.raises(lh.ConfigError, match=reason):
        with_fields(lh.Config("CartPole-v1"), changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"targets": "gae", "ppo.lam": 0.9},
        {"targets": "vtrace", "ppo.lam": 0.9},
        {"targets": "nstep", "ppo.n_step": 3},
        {"baseline": "mean", "ppo.advantage": "none"},
        {"baseline": "none", "ppo.advantage": "head", "credit": "episode"},
        {"ppo.dual_clip": 3.0, "ppo.clip_range": constant(0.1)},
        {"objective": "kl", "ppo.kl_target": constant(0.02), "ppo.kl_limit": constant(0.1)},
        {"objective": "trpo", "ppo.kl_target": constant(0.02), "ppo.freeze_actor": 2},
        {"objective": "trpo", "optimizer.critic.learning_rate": constant(1e-3), "optimizer.weight_decay": 0.1},
        {"objective": "a2c", "ppo.epochs": 1, "critic.epochs_after": 2},
        {"objective": "vpg", "baseline": "mean", "ppo.advantage": "percentile", "targets": "mc"},
        {"ppo.kl_limit": constant(0.1), "ppo.kl_check": "epoch"},
        {"ppo.kl_limit": constant(0.1), "ppo.epochs": 1},
        {"targets": "vtrace", "ppo.epochs": 1, "critic.epochs_after": 1},
        {"ppo.advantage": "minibatch", "ppo.minibatches": 512},
        {"critic": lh.CriticConfig(joint=False, epochs_before=1, minibatches=2)},
        {"optimizer.clip": "global", "optimizer.max_grad_norm": 1.0, "optimizer.critic.learning_rate": constant(1e-3)},
        {"optimizer.kl_target": constant(0.01), "optimizer.critic.learning_rate": Schedule(1e-3, 0.0)},
    ],
    ids=str,
)
def test_what_goes_together_is_accepted(with_fields, changes):
    with_fields(lh.Config("CartPole-v1"), changes)


def test_a_number_or_a_text_where_a_schedule_belongs_becomes_one():
    assert lh.OptimizerConfig(learning_rate=1e-3).learning_rate == constant(1e-3)
    assert lh.OptimizerConfig(learning_rate="linear:1e-3:0").learning_rate == Schedule(1e-3, 0.0)
    with pytest.raises(lh.ConfigError, match=r"optimizer\.learning_rate"):
        lh.OptimizerConfig(learning_rate="fast")


@pytest.mark.parametrize("value", [object(), math.nan, {1, 2}])
def test_arguments_for_the_environment_that_json_cannot_hold_are_refused(value):
    with pytest.raises(lh.ConfigError, match=r"env\.kwargs"):
        lh.EnvConfig(kwargs={"x": value})
