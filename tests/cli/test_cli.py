"""The command line: what it says, writes and answers with."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import levelhead as lh
from levelhead import checkpoint
from levelhead.__main__ import main as program
from levelhead.rundir import read_info
from toys import same

pytestmark = pytest.mark.usefixtures("workdir")

# -- commands ----------------------------------------------------------------------------------------------------


def test_train_says_where_the_run_is_how_good_it_is_and_what_to_type_next(cli, workdir, tiny_options):
    status, out, err = cli("train", "CartPole-v1", *tiny_options)
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
def test_what_to_type_next_means_this_run_wherever_it_is(cli, run, workdir, where, tiny_options):
    status, out, _ = cli("train", "CartPole-v1", *tiny_options, "--run-dir", where, "--seed", "2")
    assert status == 0
    assert f"run directory  {where}\n" in out
    assert "latest" not in out
    commands = [shlex.split(line.removeprefix("next")) for line in out.splitlines() if "levelhead " in line]
    assert len(commands) == 2
    assert all(command[2] == where for command in commands)


@pytest.mark.parametrize("on_path", [True, False])
def test_what_to_type_next_calls_this_installation(cli, run, tmp_path, monkeypatch, tiny_options, on_path):
    programs = tmp_path / "venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("python", "levelhead", "tensorboard"):
        (programs / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(programs if on_path else tmp_path))
    _, out, _ = cli("train", "CartPole-v1", *tiny_options)
    prefix = "" if on_path else "venv/bin/"
    assert f"next           {prefix}levelhead eval runs/" in out
    assert f"               {prefix}tensorboard --logdir runs/" in out


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


def test_list_shows_every_run_with_its_last_score(cli, run, workdir, tiny_options):
    cli("train", "Acrobot-v1", *tiny_options)
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


def test_list_says_that_there_are_no_runs(cli):
    assert cli("list") == (0, "no runs under runs/\n", "")


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


def test_the_program_is_installed_under_its_name():
    (script,) = entry_points(group="console_scripts", name="levelhead")
    assert script.load() is program


def test_version_is_that_of_the_package(cli):
    assert cli("--version") == (0, f"levelhead {lh.__version__}\n", "")


# -- environments, evaluation, scale -----------------------------------------------------------------------------


def test_arguments_reach_the_environments_constructor_in_training_and_evaluation(
    cli, monkeypatch, workdir, tiny_options
):
    from gymnasium.envs.classic_control import PendulumEnv

    seen, original = [], PendulumEnv.__init__

    def init(self, *args, **kwargs):
        seen.append(kwargs.get("g"))
        original(self, *args, **kwargs)

    monkeypatch.setattr(PendulumEnv, "__init__", init)
    status, _, err = cli("train", "Pendulum-v1", *tiny_options, "--env.kwargs", '{"g": 5.0}', "--eval-every", "32")
    assert (status, err) == (0, "")
    assert cli("eval", "latest", "--episodes", "1")[0] == 0
    assert len(seen) > 10
    assert set(seen) == {5.0}


MINE = "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"


def test_a_users_environment_is_registered_by_import_for_every_command(cli, module, workdir, tiny_options):
    name = module("my_environments", MINE)
    assert cli("train", "Mine-v0", "--import", name, *tiny_options)[0] == 0
    # Another process knows the environment only if the run remembers where it came from.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(workdir), *sys.path])}
    for command in (["eval", "latest", "--episodes", "1"], ["resume", "latest", "--total-steps", "96"]):
        done = subprocess.run(
            [sys.executable, "-m", "levelhead", *command], env=environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout


def test_evaluations_are_logged_every_so_many_steps(cli, workdir, metrics, tiny_options):
    options = ["--eval-every", "32", "--eval-episodes", "2", "--run-dir", "r"]
    assert cli("train", "CartPole-v1", *tiny_options, *options)[0] == 0
    assert all(line["eval/mean_return"] > 0 for line in metrics(workdir / "r"))


def test_a_reward_scale_of_a_power_of_two_changes_nothing_but_the_axis_of_values(cli, workdir, metrics, tiny_options):
    for directory, scale in (("one", 1), ("scaled", 2**12)):
        assert cli("train", "CartPole-v1", *tiny_options, "--reward-scale", scale, "--run-dir", directory)[0] == 0
    one, scaled = (metrics(workdir / name) for name in ("one", "scaled"))
    assert [line["rollout/ep_rew_mean"] for line in one] == [line["rollout/ep_rew_mean"] for line in scaled]
    assert [2**12 * line["value/mean"] for line in one] == [line["value/mean"] for line in scaled]
    networks = [lh.load_policy(name).network.state_dict() for name in ("one", "scaled")]
    assert same(*networks)


# -- several tasks -----------------------------------------------------------------------------------------------


def scores(out, ids):
    """The lines that tell the greedy return of a task, by its id."""
    lines = [line for line in out.splitlines() if line.startswith("greedy return")]
    assert len(lines) == len(ids)
    return dict(zip(ids, lines, strict=True))


def test_several_ids_train_one_policy_and_every_task_gets_a_line(cli, two_tasks, workdir, metrics, tiny_options):
    ids = two_tasks.split("+")
    status, out, err = cli("train", two_tasks, *tiny_options, "--value", "hlgauss", "--ppo.advantage", "percentile")
    assert (status, err) == (0, "")
    directory = re.search(r"^run directory +(\S+)$", out, re.M).group(1)
    policy = lh.load_policy(directory)
    assert policy.value_head.output_dim == 2
    for command, episodes, seed in ((out, 20, 1), (None, 5, 3)):
        if command is None:
            status, command, _ = cli("eval", directory, "--episodes", episodes, "--seed", seed)
            assert (status, command.splitlines()[0]) == (0, two_tasks)
        report = lh.evaluate(policy, two_tasks, episodes, seed)
        for name, line in scores(command, ids).items():
            part = report.by_task[name]
            assert len(part.returns) == (episodes + (name == ids[0])) // 2
            mean, spread = f"{part.mean_return:.1f} +- {part.std_return:.1f}", f"over {len(part.returns)} episodes"
            assert line.startswith(f"greedy return  {mean} {spread} (")
            assert line.endswith(f"  {name}")
    last = metrics(workdir / directory)[-1]
    assert {f"value/std/{name}" for name in ids} <= last.keys()
    assert cli("list")[1].startswith(f"runs/{two_tasks}/")
    status, out, _ = cli("resume", directory, "--total-steps", "96")
    assert status == 0
    scores(out, ids)


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


def test_a_fault_ends_with_status_1_is_named_and_leaves_what_was_learned(cli, module, workdir, tiny_options):
    name = module("faulty_environment", FAULTY)
    status, _, err = cli("train", "Faulty-v0", "--import", name, *tiny_options, "--run-dir", "r")
    assert status == 1
    assert "non-finite reward of environment" in err
    assert "iteration 2 on rank 0" in err
    assert "r/checkpoints/step-000000000032" in err
    assert lh.load_policy("r").value_head.count == 1
    lines = [json.loads(line) for line in (workdir / "r/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [32]


def test_a_full_disk_ends_with_status_1_and_is_named_without_a_traceback(cli, no_room, tiny_options):
    with no_room(40_000):
        status, _, err = cli("train", "CartPole-v1", *tiny_options, "--run-dir", "r", "--network.actor", 128, 128)
    assert status == 1
    assert err.startswith("levelhead: ")
    assert err.endswith("r/checkpoints/step-000000000032 cannot be written: File too large")


def test_a_full_disk_is_a_warning_where_that_is_asked_for(cli, no_room, tiny_options):
    wide = ["--run-dir", "r", "--network.actor", 128, 128, "--write-failure", "warn"]
    with no_room(40_000), warnings.catch_warnings():
        warnings.simplefilter("always")
        status, _, err = cli("train", "CartPole-v1", *tiny_options, *wide)
    warning = r"levelhead: warning: r/\S+32 cannot be written: File too large; training goes on"
    assert re.fullmatch(warning + r" levelhead: r/\S+64 cannot be written: File too large", err)
    assert status == 1  # as the last one could not be written either


def test_the_best_checkpoint_is_played_by_name(cli, run):
    best = checkpoint.best(run)
    assert cli("eval", run / "checkpoints/best", "--episodes", "3") == cli("eval", best, "--episodes", "3")
    status, _, err = cli("eval", run.parent / "nowhere/checkpoints/best")
    assert status == 2
    assert "doesn't exist" in err


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_training_is_saved_ends_with_status_130_and_goes_on(cli, workdir, tiny_options):
    command = [sys.executable, "-m", "levelhead", "train", "CartPole-v1", *tiny_options, "--total-steps", "100000000"]
    options = ["--checkpoint-every", "0", "--run-dir", "r"]
    with subprocess.Popen(command + options, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        metrics = workdir / "r/metrics.jsonl"
        try:
            while process.poll() is None and not (metrics.exists() and "\n" in metrics.read_text()):
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, err) == (130, "")
    assert re.search(r"\blevelhead resume r$", out, re.M)
    assert "\x1b" not in out
    step = int(re.search(r"interrupted at step (\d+); everything is saved", out).group(1))
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert lines[-1]["step"] == step
    assert [p.name for p in checkpoint.checkpoints(workdir / "r")] == [f"step-{step:012d}"]
    assert cli("resume", "r", "--total-steps", step + 1)[0] == 0
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert steps == list(range(32, step + 33, 32))


def test_modules_to_import_are_looked_for_where_one_stands(workdir, tiny_options):
    entry = "gymnasium.envs.classic_control:CartPoleEnv"
    (workdir / "mine.py").write_text(
        f"import gymnasium\ngymnasium.register('Mine-v0', {entry!r}, max_episode_steps=9)\n"
    )
    script = Path(sys.executable).with_name("levelhead")
    command = [script, "train", "Mine-v0", "--import", "mine", *tiny_options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
