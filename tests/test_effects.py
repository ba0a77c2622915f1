"""No option is without effect: every field of the config changes something."""

import io
import itertools
import re
import warnings
from contextlib import nullcontext
from typing import get_args

import pytest
import torch
from rich.console import Console

import levelhead as lh
from fields import leaves
from levelhead import checkpoint, native
from levelhead.builders import build_device
from levelhead.config import AdvantageScale, Distribution, MemoryKind, ObjectiveKind, TargetKind, ValueKind
from levelhead.estimators import Baseline
from levelhead.schedules import Schedule, constant

OPTIMIZER_GROUPS = ("optimizer.shared", "optimizer.actor", "optimizer.critic")

PENDULUM = {"env_id": "Pendulum-v1"}

# Field: a value other than the tiny run's, and what must hold around it for the field to have something to act on.
CHANGES_THE_OUTCOME = {
    "env_id": ("Acrobot-v1", {}),
    "total_steps": (64, {}),
    "seed": (2, {}),
    "value": ("linear", {}),
    "objective": ("kl", {}),
    "targets": ("mc", {}),
    "baseline": ("mean", {"ppo.advantage": "none"}),
    "credit": ("episode", {}),
    "num_envs": (4, {}),
    "num_steps": (8, {}),
    "reward_scale": (2.0, {}),
    "normalize_reward": (True, {"value": "linear"}),
    "clip_reward": (0.5, {}),
    "backend": ("vector", {}),
    "engine": ("torch", {}),
    "overlap": (True, {}),
    "double_buffer": (True, {"backend": "processes"}),
    "eval_every": (32, {}),
    "eval_episodes": (1, {"eval_every": 32}),
    "env.kwargs": ({"sutton_barto_reward": True}, {}),
    "network.shared": ((8,), {}),
    "network.actor": ((4,), {}),
    "network.critic": ((4,), {}),
    "network.activation": ("relu", {}),
    "network.normalize_observation": (True, {}),
    "network.image_encoder": ("impala", {"env_id": "Pixels-v0"}),
    "network.precision": ("float64", {}),
    "parallel.shards": (2, {}),
    "memory.kind": ("lstm", {}),
    "memory.size": (8, {"memory.kind": "gru"}),
    "memory.place": ("before", {"memory.kind": "gru", "network.shared": (8,)}),
    "memory.sharing": ("separate", {"memory.kind": "gru"}),
    "action.distribution": ("tanh", PENDULUM),
    "action.bounds": ("rescale", PENDULUM),
    "action.sigma": ("fixed", PENDULUM),
    "action.std": (constant(0.5), PENDULUM),
    "action.std_hidden": ((8,), {**PENDULUM, "action.sigma": "conditioned"}),
    "action.log_std_bounds": ((-0.5, 0.5), PENDULUM),
    "action.color": (1.0, PENDULUM),
    "action.gates": ({"1": {"0": [1]}}, {"env_id": "Hybrid-v0"}),
    "action.sees": ({"1": ["0"]}, {"env_id": "Hybrid-v0"}),
    "head.beta": (constant(0.5), {}),
    "ppo.gamma": (0.5, {}),
    "ppo.lam": (0.0, {}),
    "ppo.epochs": (3, {}),
    "ppo.minibatches": (4, {}),
    "ppo.chunk": (4, {"memory.kind": "gru"}),
    "ppo.burn_in": (2, {"memory.kind": "gru", "ppo.chunk": 4}),
    "ppo.clip_range": (constant(1e-3), {}),
    "ppo.n_step": (2, {"targets": "nstep"}),
    "ppo.freeze_actor": (1, {}),
    "ppo.dual_clip": (1.0001, {}),
    "ppo.kl_target": (constant(1e-4), {"objective": "trpo"}),
    "ppo.kl_limit": (constant(1e-6), {}),
    "ppo.kl_check": ("epoch", {"ppo.kl_limit": constant(1e-6)}),
    "ppo.advantage": ("none", {}),
    "ppo.entropy_coef": (constant(0.1), {}),
    "ppo.value_coef": (constant(0.1), {}),
    "ppo.value_clip": (constant(1e-3), {}),
    "ppo.value_huber": (constant(1e-2), {}),
    "critic.joint": (False, {"critic.epochs_after": 1}),
    "critic.epochs_before": (1, {}),
    "critic.epochs_after": (1, {}),
    "critic.minibatches": (4, {"critic.epochs_after": 1}),
    "auxiliary.every": (1, {}),
    "auxiliary.epochs": (2, {"auxiliary.every": 1}),
    "auxiliary.clone_coef": (constant(0.1), {"auxiliary.every": 1}),
    "optimizer.learning_rate": (Schedule(1e-2, 0.0), {}),
    "optimizer.eps": (1e-2, {}),
    "optimizer.max_grad_norm": (1e-2, {}),
    "optimizer.clip": ("global", {}),
    "optimizer.weight_decay": (0.1, {}),
    "optimizer.warmup": (2, {}),
    "optimizer.kl_target": (constant(1e-6), {}),
    **{
        f"{group}.{name}": (value, {"network.shared": (8,)})
        for group in OPTIMIZER_GROUPS
        for name, value in (("learning_rate", constant(1e-3)), ("eps", 1e-2), ("max_grad_norm", 1e-2))
    },
}
CHANGES_SOMETHING_ELSE = {
    *("device", "threads", "run_dir", "checkpoint_every", "keep_checkpoints", "imports"),
    "write_failure",  # tests/test_loop.py
    *("env.workers", "env.timeout", "env.max_restarts"),  # tests/envs/test_processes.py
    *("parallel.timeout", "parallel.cutoff"),  # tests/ranks
}


def test_every_field_is_shown_to_have_an_effect():
    assert set(CHANGES_THE_OUTCOME) | CHANGES_SOMETHING_ELSE == {name for name, _ in leaves()}


@pytest.fixture(scope="module")
def train_once(tiny, outcome, tmp_path_factory):
    """The outcome of the tiny run with fields changed; each is trained once."""
    done = {}

    def run(changes, again=False):
        key = (str(sorted(changes.items())), again)
        if key not in done:
            config = tiny(**changes)
            directory = tmp_path_factory.mktemp("effect")
            done[key] = outcome(lh.train(config.env_id, config=config, run_dir=directory).directory)
        return done[key]

    return run


@pytest.mark.parametrize("field", CHANGES_THE_OUTCOME)
def test_a_field_changes_the_outcome(train_once, field):
    value, around = CHANGES_THE_OUTCOME[field]
    assert train_once({**around, field: value}) != train_once(around)


@pytest.mark.parametrize("around", [{}, {"env_id": "Pendulum-v1"}, {"network.shared": (8,)}])
def test_the_same_config_gives_the_same_outcome(train_once, around):
    assert train_once(around) == train_once(around, again=True)


@pytest.mark.parametrize(
    ("field", "kinds", "around"),
    [
        ("value", get_args(ValueKind), {}),
        ("objective", get_args(ObjectiveKind), {"ppo.epochs": 1}),
        ("targets", get_args(TargetKind), {}),
        ("baseline", get_args(Baseline), {"ppo.advantage": "none"}),
        ("ppo.advantage", get_args(AdvantageScale), {}),
        ("memory.kind", get_args(MemoryKind), {}),
        ("action.distribution", get_args(Distribution), PENDULUM),
        ("action.sigma", ("fixed", "independent", "conditioned"), PENDULUM),
    ],
)
def test_every_choice_gives_an_outcome_of_its_own(train_once, field, kinds, around):
    # Of the policy itself: metrics would differ by their names alone.
    outcomes = [train_once({**around, field: kind})["policy.safetensors"] for kind in kinds]
    assert len(set(outcomes)) == len(kinds) >= 3


def test_a_standard_deviation_on_a_schedule_is_not_a_fixed_one(train_once):
    scheduled = {**PENDULUM, "action.sigma": "scheduled"}
    course = {**scheduled, "action.std": Schedule(1.0, 0.1)}
    assert train_once(scheduled) == train_once({**PENDULUM, "action.sigma": "fixed"})
    assert train_once(course) != train_once(scheduled)


def test_device_decides_where_networks_live(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [build_device(d).type for d in ("auto", "cpu", "cuda")] == ["cuda", "cpu", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [build_device(d).type for d in ("auto", "cpu")] == ["cpu", "cpu"]


@pytest.mark.filterwarnings("ignore:network.precision is bfloat16")  # depends on the machine
@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_every_precision_changes_the_outcome(train_once, precision):
    assert train_once({"network.precision": precision}) != train_once({})


@pytest.mark.parametrize("known", [True, False])
def test_bfloat16_on_a_processor_without_instructions_for_it_is_warned_of(tiny, monkeypatch, known):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: known)
    told = nullcontext() if known else pytest.warns(UserWarning, match="network.precision is bfloat16, which this")
    with told:
        lh.train("CartPole-v1", config=tiny(**{"network.precision": "bfloat16"}))


def test_tf32_is_for_gpus_and_refused_elsewhere_before_anything_is_written(tiny, workdir):
    with pytest.raises(lh.ConfigError, match=r"network.precision is tf32.*accepted here: float32, bfloat16, float64"):
        lh.train("CartPole-v1", config=tiny(**{"network.precision": "tf32"}))
    assert not (workdir / "runs").exists()


def test_device_cuda_without_a_gpu_is_refused_before_anything_is_written(monkeypatch, tiny, workdir):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(lh.ConfigError, match=r"device is 'cuda'.*accepted here: auto, cpu"):
        lh.train("CartPole-v1", config=tiny(device="cuda"))
    assert list(workdir.iterdir()) == []


@pytest.fixture
def four_processors(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 5})
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("threads", "expected"), [(None, 1), (1, 1), (3, 3), (100, 4)])
def test_threads_are_those_of_torch_and_no_more_than_processors(four_processors, tiny, workdir, threads, expected):
    lh.train("CartPole-v1", config=tiny(threads=threads, total_steps=1, engine="torch"))
    assert torch.get_num_threads() == expected


def test_threads_0_tries_and_tells(four_processors, tiny, workdir):
    seen, file, forward = [], io.StringIO(), lh.PopArtValueHead.forward

    class Watching(lh.PopArtValueHead):
        def forward(self, features):
            seen.append(torch.get_num_threads())
            return forward(self, features)

    config = tiny(threads=0, total_steps=5 * 32)
    lh.train("CartPole-v1", config=config, value=Watching(8), console=Console(file=file))
    assert [count for count, _ in itertools.groupby(seen)][:3] == [1, 2, 4]
    (found,) = re.findall(r"threads: (\d) \(1: [\d,]+ steps/s, 2: [\d,]+ steps/s, 4: [\d,]+ steps/s\)", file.getvalue())
    assert torch.get_num_threads() == int(found) == seen[-1]


@pytest.mark.skipif(not native.available(), reason="built without a compiler")
@pytest.mark.parametrize(("threads", "expected"), [(None, 2), (1, 1), (2, 2), (100, 4)])
def test_threads_are_those_of_native_code_where_it_learns(
    four_processors, tiny, workdir, monkeypatch, threads, expected
):
    asked, run = [], native.run_epochs
    monkeypatch.setattr(native, "run_epochs", lambda plan: (asked.append(plan.threads), run(plan)))
    lh.train("CartPole-v1", config=tiny(threads=threads, total_steps=1, engine="native"))
    assert (asked, torch.get_num_threads()) == ([expected], 1)


def test_threads_are_not_tried_where_each_number_would_be_compiled_for(four_processors, tiny, workdir):
    file, config = io.StringIO(), tiny(threads=0, total_steps=5 * 32, engine="compile")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own
        lh.train("CartPole-v1", config=config, console=Console(file=file))
    assert "threads:" not in file.getvalue()
    assert torch.get_num_threads() == 1


@pytest.mark.skipif(not native.available(), reason="built without a compiler")
def test_native_code_has_one_thread_where_there_is_one_processor(tiny, workdir, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0})
    asked, run = [], native.run_epochs
    monkeypatch.setattr(native, "run_epochs", lambda plan: (asked.append(plan.threads), run(plan)))
    lh.train("CartPole-v1", config=tiny(total_steps=1, engine="native"))
    assert asked == [1]


def test_run_dir_decides_where_the_run_is_written(tiny, workdir):
    run = lh.train("CartPole-v1", config=tiny(total_steps=1, run_dir=workdir / "here"))
    assert run.directory == workdir / "here"
    assert [p.name for p in workdir.iterdir()] == ["here"]


@pytest.mark.parametrize(
    ("every", "steps"), [(None, [96]), (32, [32, 64, 96]), (0, [96]), (64, [64, 96]), (50, [64, 96])]
)
def test_checkpoint_every_decides_which_steps_are_kept(tiny, workdir, every, steps):
    run = lh.train("CartPole-v1", config=tiny(checkpoint_every=every))
    assert sorted(p.name for p in (run.directory / "checkpoints").iterdir()) == [f"step-{s:012d}" for s in steps]


@pytest.mark.parametrize(("keep", "least"), [(None, 5), (2, 2), (3, 3)])
def test_keep_checkpoints_decides_how_many_stay(tiny, workdir, keep, least):
    run = lh.train("CartPole-v1", config=tiny(total_steps=160, keep_checkpoints=keep))
    steps = [int(p.name.removeprefix("step-")) for p in checkpoint.checkpoints(run.directory)]
    assert steps[-least:] == list(range(160, 160 - 32 * least, -32))[::-1]
    assert len(steps) <= least + 1


def test_imports_run_before_the_environment_is_made(tiny, workdir, module):
    source = "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    name = module("registers_mine", source)
    assert lh.train("Mine-v0", config=tiny("Mine-v0", imports=(name,), total_steps=1)).step == 32


def test_an_import_that_fails_is_refused_by_name(tiny, workdir):
    with pytest.raises(lh.ConfigError, match="cannot import no_such_module_at_all"):
        lh.train("CartPole-v1", config=tiny(imports=("no_such_module_at_all",)))
    assert list(workdir.iterdir()) == []
