"""The command line: what it says, writes and answers with."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from toys import same

import levelhead as lh
from levelhead import api, checkpoint
from levelhead.cli import main
from levelhead.config import Config
from levelhead.rundir import read_info
from levelhead.serialize import to_json

pytestmark = pytest.mark.usefixtures("workdir")
SMALL = "--num-envs 2 --num-steps 16 --ppo.epochs 1 --ppo.minibatches 2 --network.actor 8 --network.critic 8".split()
TINY = ["--total-steps", "64", *SMALL]

OPTIONS = {
    "checkpoint-every", "device", "env.kwargs", "eval-episodes", "eval-every", "head.beta", "import", "network.activation",
    "network.actor", "network.critic", "network.log-std", "network.no-normalize-observation",
    "network.normalize-observation", "network.shared", "num-envs", "num-steps", "optimizer.eps",
    "optimizer.learning-rate", "optimizer.max-grad-norm", "ppo.advantage", "ppo.clip-range", "ppo.entropy-coef",
    "ppo.epochs", "ppo.gamma", "ppo.lam", "ppo.minibatches", "ppo.value-clip", "ppo.value-coef", "reward-scale",
    "run-dir", "seed", "threads", "total-steps", "value",
    *(f"optimizer.{g}.{x}" for g in ("shared", "actor", "critic") for x in ("eps", "learning-rate", "max-grad-norm")),
}  # fmt: skip


@pytest.fixture
def cli(capsys):
    """Runs a command in this process: exit status, output and errors, the latter as one line without frames."""

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return caught.value.code, out, " ".join(re.sub("[│╭╮╰╯─]", " ", err).split())

    return run


@pytest.fixture
def run(workdir, cli):
    """A finished run under `runs/`."""
    assert cli("train", "CartPole-v1", *TINY)[0] == 0
    return next((workdir / "runs/CartPole-v1").iterdir())


def written(workdir):
    return [p for p in workdir.rglob("*") if p.is_file()]


# -- commands ----------------------------------------------------------------------------------------------------


def test_train_says_where_the_run_is_how_good_it_is_and_what_to_type_next(cli, workdir):
    status, out, err = cli("train", "CartPole-v1", *TINY)
    assert (status, err) == (0, "")
    directory = re.search(r"^run directory +(\S+)$", out, re.M).group(1)
    run = workdir / directory
    assert run.parent == workdir / "runs/CartPole-v1"
    report = lh.evaluate(lh.load_policy(run), "CartPole-v1", 20, 1)
    assert f"greedy return  {report.mean_return:.1f} +- {report.std_return:.1f} over 20 episodes" in out
    commands = re.findall(r"levelhead (eval|resume) (.*)", out)
    assert [name for name, _ in commands] == ["eval", "resume"]
    for name, arguments in commands:
        assert cli(name, *arguments.split())[0] == 0
    assert lh.evaluate(lh.load_policy(run), "CartPole-v1", 1)
    assert read_info(run).config.total_steps == 128


@pytest.mark.parametrize("where", ["outside", "in[brackets]", "with space"])
def test_what_to_type_next_means_this_run_wherever_it_is(cli, run, workdir, where):
    status, out, _ = cli("train", "CartPole-v1", *TINY, "--run-dir", where, "--seed", "2")
    assert status == 0
    assert f"run directory  {where}\n" in out
    assert "latest" not in out


def test_eval_plays_greedily_what_python_would(cli, run):
    status, out, _ = cli("eval", run, "--episodes", "7", "--seed", "3")
    report = lh.evaluate(lh.load_policy(run), "CartPole-v1", 7, 3)
    assert status == 0
    assert f"{report.mean_return:.1f} +- {report.std_return:.1f} over 7 episodes" in out


@pytest.mark.parametrize("name", ["latest", "checkpoint", "directory"])
def test_a_run_is_named_by_directory_checkpoint_or_latest(cli, run, name):
    names = {"latest": "latest", "checkpoint": checkpoint.checkpoints(run)[-1], "directory": run}
    assert cli("eval", names[name], "--episodes", "1")[0] == 0
    assert cli("resume", names[name], "--total-steps", "96")[0] == 0
    assert checkpoint.checkpoints(run)[-1].name == "step-000000000096"


def test_resume_of_a_finished_run_is_refused(cli, run):
    status, _, err = cli("resume", "latest")
    assert status == 2
    assert "has taken 64 of 64 steps: give more total steps" in err


def test_list_shows_every_run_with_its_last_score(cli, run, workdir):
    cli("train", "Acrobot-v1", *TINY)
    (workdir / "runs/CartPole-v1/just-begun").mkdir()
    (workdir / "runs/CartPole-v1/just-begun/config.json").write_text((run / "config.json").read_text())
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 96, "iterat')
    score = json.loads((run / "metrics.jsonl").read_text().splitlines()[1])["rollout/ep_rew_mean"]
    status, out, err = cli("list")
    assert (status, err) == (0, "")
    assert f"{run.relative_to(workdir)}  step 64  return {score:.1f}" in out
    assert re.search(r"runs/Acrobot-v1/\S+  step 64  no episode yet", out)
    assert "runs/CartPole-v1/just-begun  step 0  no episode yet" in out


def test_list_without_runs_is_empty(cli):
    assert cli("list") == (0, "", "")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(cli, arguments):
    status, out, _ = cli(*arguments)
    assert status == 0
    assert all(f"\n  {command}" in out for command in ("train", "eval", "resume", "list"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--help"), ("--total-steps", "--ppo.clip-range")),
        (("train", "CartPole-v1", "--help"), ("--total-steps", "linear:0.")),
        (("eval", "--help"), ("--episodes", "--seed")),
        (("resume", "--help"), ("--total-steps",)),
        (("list", "--help"), ("runs/",)),
    ],
)
def test_help_of_a_command_names_its_options(cli, arguments, words):
    status, out, _ = cli(*arguments)
    assert status == 0
    assert all(word in out for word in words)


def test_version_is_that_of_the_package(cli):
    assert cli("--version") == (0, f"levelhead {lh.__version__}\n", "")


# -- options -----------------------------------------------------------------------------------------------------


def test_the_options_of_train_keep_their_names(cli):
    # Scripts rely on them: one may be added here, and none may go.
    _, out, _ = cli("train", "--help")
    assert set(re.findall(r"(?<![\w.-])--([a-z][a-z.-]*)", out)) - {"help"} == OPTIONS


@pytest.fixture
def parsed(cli, monkeypatch):
    """The config that training would begin with, and the environment's id."""
    seen = []

    def stop(env, *, config, console):
        seen.append((env, config))
        raise lh.ConfigError("enough")

    def parse(*arguments):
        monkeypatch.setattr(api, "train", stop)
        status, _, err = cli("train", *arguments)
        assert (status, err) == (2, "levelhead: enough"), err
        return seen[-1]

    return parse


TEXTS = {
    "total_steps": ("77", 77),
    "seed": ("5", 5),
    "value": ("linear", "linear"),
    "num_envs": ("3", 3),
    "num_steps": ("9", 9),
    "reward_scale": ("1e-3", 1e-3),
    "device": ("cpu", "cpu"),
    "threads": ("0", 0),
    "run_dir": ("a/b", "a/b"),
    "eval_every": ("10", 10),
    "eval_episodes": ("2", 2),
    "checkpoint_every": ("0", 0),
    "imports": ("a b.c", ["a", "b.c"]),
    "env.kwargs": ('{"g": 5.0, "x": [true, null]}', {"g": 5.0, "x": [True, None]}),
    "network.shared": ("4 5", [4, 5]),
    "network.actor": ("6", [6]),
    "network.critic": ("", []),
    "network.activation": ("relu", "relu"),
    "network.normalize_observation": (None, True),
    "network.log_std": ("-0.5", -0.5),
    "head.beta": ("linear:0.9:0.99", "linear:0.9:0.99"),
    "ppo.gamma": ("0.9", 0.9),
    "ppo.lam": ("1", 1.0),
    "ppo.epochs": ("2", 2),
    "ppo.minibatches": ("3", 3),
    "ppo.clip_range": ("cosine:0.3:0.1", "cosine:0.3:0.1"),
    "ppo.advantage": ("head", "head"),
    "ppo.entropy_coef": ("exponential:0.05:0.001", "exponential:0.05:0.001"),
    "ppo.value_coef": ("0.25", 0.25),
    "ppo.value_clip": ("0.2", 0.2),
    "optimizer.learning_rate": ("linear:3e-4:0", "linear:0.0003:0.0"),
    "optimizer.eps": ("1e-8", 1e-8),
    "optimizer.max_grad_norm": ("1", 1.0),
    **{
        f"optimizer.{group}.{name}": (text, value)
        for group in ("shared", "actor", "critic")
        for name, text, value in (
            ("learning_rate", "1e-4", 1e-4),
            ("eps", "1e-7", 1e-7),
            ("max_grad_norm", "2", 2.0),
        )
    },
}


def flat(data, prefix=""):
    """Fields of a config by dotted name, as JSON values."""
    for name, value in data.items():
        if isinstance(value, dict) and prefix + name != "env.kwargs":
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_every_field_of_the_config_has_an_option():
    assert {name for name, _ in flat(to_json(Config("X")))} == {"env_id", *TEXTS}


@pytest.mark.parametrize("field", TEXTS)
def test_an_option_reaches_its_field_and_no_other(parsed, field):
    text, value = TEXTS[field]
    around = ["--network.shared", "3"] if field.startswith("optimizer.shared") else []
    option = f"--{'import' if field == 'imports' else field.replace('_', '-')}"
    words = [] if text is None else [text] if field == "env.kwargs" else text.split()
    _, before = parsed("Some-v0", *around)
    env, after = parsed("Some-v0", *around, option, *words)
    assert env == after.env_id == "Some-v0"
    changed = dict(flat(to_json(after)).__iter__())
    assert changed == {**dict(flat(to_json(before))), field: value}


def test_options_start_from_the_preset_of_the_environment(parsed):
    _, config = parsed("CartPole-v1", "--optimizer.eps", "1e-3")
    assert config.optimizer.learning_rate == lh.preset("CartPole-v1").optimizer.learning_rate
    assert config.optimizer.eps == 1e-3


@pytest.mark.parametrize("field", ["head.beta", "checkpoint_every", "run_dir", "ppo.value_clip", "optimizer.actor.eps"])
def test_none_is_an_answer_where_the_default_is_none(parsed, field):
    _, config = parsed("Some-v0", f"--{field.replace('_', '-')}", "None")
    assert dict(flat(to_json(config)))[field] is None


# -- bad usage ---------------------------------------------------------------------------------------------------

BAD = [
    (("tran", "CartPole-v1"), "unknown command 'tran'; did you mean 'train'?"),
    (("frobnicate",), "unknown command 'frobnicate'; see levelhead --help"),
    (("train",), "train needs an environment's id first"),
    (("train", "--seed", "1"), "train needs an environment's id first"),
    (("train", "CartPule-v1"), "cannot make CartPule-v1"),
    (("train", "CartPule-v1"), "Did you mean: `CartPole`"),
    (("train", "CartPole-v1", "--totl-steps", "5"), "--total-steps"),
    (("train", "CartPole-v1", "--ppo.gama", "0.9"), "--ppo.gamma"),
    (("train", "CartPole-v1", "--total-steps", "many"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps", "1.5"), "--total-steps"),
    (("train", "CartPole-v1", "--total-steps", "0"), "total_steps is 0; accepted: at least 1"),
    (("train", "CartPole-v1", "--value", "popat"), "popart"),
    (("train", "CartPole-v1", "--device", "gpu"), "cuda"),
    (("train", "CartPole-v1", "--ppo.gamma", "1.5"), "ppo.gamma is 1.5; accepted: a value in [0, 1]"),
    (("train", "CartPole-v1", "--ppo.value-clip", "inf"), "a schedule goes between finite numbers"),
    (("train", "CartPole-v1", "--optimizer.max-grad-norm", "inf"), "optimizer.max_grad_norm is inf; accepted:"),
    (("train", "CartPole-v1", "--optimizer.actor.eps", "-1"), "optimizer.actor.eps is -1.0; accepted:"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "linear:1e-3"), "write a number, or SHAPE:START:END"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "steep:1:0"), "known: constant, linear, cosine"),
    (("train", "CartPole-v1", "--optimizer.learning-rate", "linear:1e-3:-1"), "optimizer.learning_rate is linear"),
    (("train", "CartPole-v1", "--optimizer.shared.eps", "1e-3"), "network.shared has no layers"),
    (("train", "CartPole-v1", "--value", "linear", "--head.beta", "0.9"), "'linear' keeps no statistics"),
    (("train", "CartPole-v1", "--env.kwargs", "{x"), "env.kwargs"),
    (("train", "CartPole-v1", "--env.kwargs", "[1]"), "[1] is not a JSON object"),
    (("train", "CartPole-v1", "--env.kwargs", '{"gravitas": 1}'), "gravitas"),
    (("train", "CartPole-v1", "--import", "no_such_module"), "cannot import no_such_module"),
    (("train", "CartPole-v1", "extra"), "extra"),
    (("train", "Blackjack-v1"), "accepted: Box"),
    (("eval",), "Run directory, checkpoint in one, or 'latest'"),
    (("eval", "latest"), "there is no run under"),
    (("eval", "nowhere"), "nowhere doesn't exist; accepted: a run directory, a checkpoint in one, or 'latest'"),
    (("eval", "."), "neither a checkpoint nor a run directory"),
    (("eval", "latest", "--episode", "3"), "--episodes"),
    (("resume", "nowhere"), "nowhere doesn't exist"),
    (("resume", "latest", "--totalsteps", "3"), "--total-steps"),
    (("list", "extra"), "extra"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_usage_is_told_what_would_be_accepted_and_leaves_no_trace(cli, workdir, arguments, message):
    status, out, err = cli(*arguments)
    assert status == 2
    assert message in err
    assert out == ""
    assert written(workdir) == []


def test_an_occupied_run_dir_is_bad_usage(cli, run, workdir):
    before = written(workdir)
    status, _, err = cli("train", "CartPole-v1", *TINY, "--run-dir", run)
    assert status == 2
    assert "is not empty; accepted: a new or an empty directory" in err
    assert written(workdir) == before


@pytest.mark.parametrize("command", [("eval",), ("resume", "--total-steps", "128")])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_named(cli, run, command):
    *_, previous, last = checkpoint.checkpoints(run)
    (last / "policy.safetensors").write_bytes(b"")
    name, *options = command
    status, _, err = cli(name, run, *options)
    assert status == 2
    assert f"{last}/policy.safetensors is damaged" in err
    assert f"The one before it: {previous}" in err


def test_eval_needs_an_episode(cli, run):
    status, _, err = cli("eval", run, "--episodes", "0")
    assert status == 2
    assert "episodes is 0; accepted: at least 1" in err


# -- environments, evaluation, scale -----------------------------------------------------------------------------


def test_arguments_reach_the_environments_constructor_in_training_and_evaluation(cli, monkeypatch, workdir):
    from gymnasium.envs.classic_control import PendulumEnv

    seen, original = [], PendulumEnv.__init__

    def init(self, *args, **kwargs):
        seen.append(kwargs.get("g"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(PendulumEnv, "__init__", init)
    status, _, err = cli("train", "Pendulum-v1", *TINY, "--env.kwargs", '{"g": 5.0}', "--eval-every", "32")
    assert (status, err) == (0, "")
    assert cli("eval", "latest", "--episodes", "1")[0] == 0
    assert len(seen) > 10
    assert set(seen) == {5.0}


MINE = "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"


def test_a_users_environment_is_registered_by_import_for_every_command(cli, module, workdir):
    name = module("my_environments", MINE)
    assert cli("train", "Mine-v0", "--import", name, *TINY)[0] == 0
    # Another process knows the environment only if the run remembers where it came from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(workdir), *sys.path])}
    for command in (["eval", "latest", "--episodes", "1"], ["resume", "latest", "--total-steps", "96"]):
        done = subprocess.run(
            [sys.executable, "-m", "levelhead", *command], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout


def test_evaluations_are_logged_every_so_many_steps(cli, workdir, metrics):
    assert cli("train", "CartPole-v1", *TINY, "--eval-every", "32", "--eval-episodes", "2", "--run-dir", "r")[0] == 0
    assert all(line["eval/mean_return"] > 0 for line in metrics(workdir / "r"))


def test_a_reward_scale_of_a_power_of_two_changes_nothing_but_the_axis_of_values(cli, workdir, metrics):
    for directory, scale in (("one", 1), ("scaled", 2**12)):
        assert cli("train", "CartPole-v1", *TINY, "--reward-scale", scale, "--run-dir", directory)[0] == 0
    one, scaled = (metrics(workdir / name) for name in ("one", "scaled"))
    assert [line["rollout/ep_rew_mean"] for line in one] == [line["rollout/ep_rew_mean"] for line in scaled]
    assert [2**12 * line["value/mean"] for line in one] == [line["value/mean"] for line in scaled]
    networks = [lh.load_policy(name).network.state_dict() for name in ("one", "scaled")]
    assert same(*networks)


# -- faults and signals ------------------------------------------------------------------------------------------

FAULTY = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Faulty(CartPoleEnv):
    steps = 0
    def step(self, action):
        observation, reward, *rest = super().step(action)
        Faulty.steps += 1
        return observation, float("nan") if Faulty.steps > 32 else reward, *rest

gymnasium.register("Faulty-v0", Faulty, max_episode_steps=5)
"""


def test_a_fault_ends_with_status_1_is_named_and_leaves_what_was_learned(cli, module, workdir):
    name = module("faulty_environment", FAULTY)
    status, _, err = cli("train", "Faulty-v0", "--import", name, *TINY, "--run-dir", "r")
    assert status == 1
    assert "non-finite reward of environment" in err
    assert "iteration 2 on rank 0" in err
    assert "r/checkpoints/step-000000000032" in err
    assert lh.load_policy("r").value_head.count == 1
    lines = [json.loads(line) for line in (workdir / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [32]


def test_an_interrupted_training_is_saved_ends_with_status_130_and_goes_on(cli, workdir):
    command = [sys.executable, "-m", "levelhead", "train", "CartPole-v1", "--total-steps", "100000000", *SMALL]
    options = ["--checkpoint-every", "0", "--run-dir", "r"]
    with subprocess.Popen(command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = workdir / "r/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and "\n" in metrics.read_text()):
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "")
    assert "levelhead resume r\n" in out
    assert "\x1b" not in out
    step = int(re.search(r"interrupted at step (\d+); everything is saved", out).group(1))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines[-1]["step"] == step
    assert [p.name for p in checkpoint.checkpoints(workdir / "r")] == [f"step-{step:012d}"]
    assert cli("resume", "r", "--total-steps", step + 1)[0] == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(32, step + 33, 32))
