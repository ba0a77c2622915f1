"""The command line."""

import difflib
import json
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, get_args

import tyro
from rich.console import Console

from levelhead import __version__, api, checkpoint, rundir
from levelhead.config import Config, ObjectiveKind, TargetKind
from levelhead.distributed import is_first, process_group, ranks
from levelhead.errors import CheckpointError, ConfigError, RankError, StorageError, TrainingFault
from levelhead.evaluation import Report
from levelhead.preparation import prepare
from levelhead.presets import PresetKind, preset
from levelhead.schedules import Schedule, schedule

USAGE = """usage: levelhead COMMAND ...

  train ENV_ID     train a policy and write a run directory; options start from the environment's preset, or with
                   --preset layered from one with a learning rate for each layer of the network
  eval RUN         play whole episodes greedily
  resume RUN       continue a run from its last checkpoint
  list             the runs under runs/, with their last scores

RUN is a run directory, a checkpoint in one (its best: RUN/checkpoints/best), or 'latest', the newest under runs/.
`levelhead COMMAND --help` lists the options of a command; `levelhead train ENV_ID --help` with that environment's
presets."""

DONE, FAULT, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130
FINAL_EPISODES = 20
RunName = tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN")]]


@dataclass(frozen=True)
class StartOptions:
    """What decides where the other options of training start."""

    objective: ObjectiveKind = "clip"
    preset: PresetKind = "tuned"
    targets: TargetKind | None = None


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes greedily with the policy of a run."""

    run: RunName
    """Run directory, checkpoint in one, or 'latest', the newest under runs/."""
    episodes: int = 10
    """How many episodes."""
    seed: int = 0
    """Of the environments."""


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its last checkpoint, in the same directory."""

    run: RunName
    """Run directory, checkpoint in one, or 'latest', the newest under runs/."""
    total_steps: int | None = None
    """A new end; schedules stretch to it."""


@dataclass(frozen=True)
class ListOptions:
    """The runs under runs/, oldest first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if str(Path.cwd()) not in sys.path:  # modules for --import are looked for here first, as with python -m
        sys.path.insert(0, str(Path.cwd()))
    console = Console()
    warnings.showwarning = _warn
    try:
        status = _dispatch(given, console)
    except (ConfigError, CheckpointError) as error:
        status = _complain(error, BAD_USAGE)
    except (TrainingFault, RankError, StorageError) as error:
        status = _complain(error, FAULT)
    except KeyboardInterrupt:
        status = _complain("interrupted", INTERRUPTED)
    sys.exit(status)


def _warn(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001  # Python's own order of arguments
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    """A warning as a user wants to read it: where in the code it was given is of no interest. Rank 0's will do."""
    if os.environ.get("RANK", "0") == "0":
        _say(Console(stderr=True), f"levelhead: warning: {message}")


def _complain(error: object, status: int) -> int:
    who = f"levelhead, rank {os.environ['RANK']}" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "levelhead"
    _say(Console(stderr=True), f"{who}: {error}")
    return status


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _dispatch(given: list[str], console: Console) -> int:
    command, rest = (given[0], given[1:]) if given else ("--help", [])
    match command:
        case "train":
            return _train(rest, console)
        case "eval":
            return _eval(_parse(EvalOptions, "eval", rest), console)
        case "resume":
            return _resume(_parse(ResumeOptions, "resume", rest), console)
        case "list":
            _parse(ListOptions, "list", rest)
            return _list(console)
        case "--help" | "-h":
            _say(console, USAGE)
            return DONE
        case "--version":
            _say(console, f"levelhead {__version__}")
            return DONE
        case _:
            near = difflib.get_close_matches(command, ("train", "eval", "resume", "list"), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see levelhead --help"
            raise ConfigError(f"unknown command {command!r}; {hint}")


# -- commands ----------------------------------------------------------------------------------------------------


def _train(arguments: list[str], console: Console) -> int:
    start, arguments = tyro.cli(StartOptions, args=arguments, return_unknown_args=True, add_help=False)
    env_id = arguments[0] if arguments else ""
    if not env_id.startswith("-") and env_id:
        default = preset(env_id, start.objective, start.preset, start.targets)
    elif env_id in ("-h", "--help"):
        default = Config("ENV_ID")
    else:
        raise ConfigError("train needs an environment's id first: levelhead train CartPole-v1 [OPTIONS]")
    config = _parse(Config, "train", arguments, default)
    with process_group():
        return _finish(api.train(config.env_id, config=config, console=console), console)


def _resume(options: ResumeOptions, console: Console) -> int:
    with process_group():
        return _finish(api.resume(options.run, total_steps=options.total_steps, console=console), console)


def _finish(run: api.Run, console: Console) -> int:
    """Says where the run is, how good the policy is, and what to type next; the first rank does, for all."""
    if not is_first():
        return INTERRUPTED if run.interrupted else DONE
    directory, levelhead = shlex.quote(str(run.directory)), _program("levelhead")
    together = levelhead if ranks() == 1 else f"{_program('torchrun')} {_launch_flags()} -m levelhead"
    _say(console, f"run directory  {run.directory}")
    if run.interrupted:
        _say(console, f"interrupted at step {run.step}; everything is saved")
        _say(console, f"next           {together} resume {directory}")
        return INTERRUPTED
    episodes = max(FINAL_EPISODES, len(run.policy.tasks))
    _say(console, f"trained; now {episodes} greedy episodes")
    report = api.evaluate(run.policy, run.config.env_id, episodes, run.config.seed, run.config.env.kwargs)
    for line in _scores(report):
        _say(console, line)
    _say(console, f"next           {levelhead} eval {directory} --episodes 100")
    _say(console, f"               {together} resume {directory} --total-steps {2 * run.config.total_steps}")
    _say(console, f"               {_program('tensorboard')} --logdir {directory}/tb")
    return DONE


def _launch_flags() -> str:
    """Of `torchrun`, for as many processes as there are now."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks()))
    return f"--nproc-per-node={here}" + (" (and its other flags, on every host)" if here < ranks() else "")


def _program(name: str) -> str:
    """How to call a program of this installation from here: its bare name only where the shell would find this one."""
    own = Path(sys.executable).with_name(name)
    if not own.exists() or shutil.which(name) == str(own):
        return name
    return shlex.quote(str(own.relative_to(Path.cwd()) if own.is_relative_to(Path.cwd()) else own))


def _eval(options: EvalOptions, console: Console) -> int:
    source = checkpoint.resolve(rundir.find(options.run))
    info = rundir.read_info(source.parent.parent)
    if "env" in info.custom:
        raise ConfigError("this run was made with an environment object: evaluate it with levelhead.evaluate in Python")
    config = info.config
    prepare(config)
    policy = api.load_policy(source)
    report = api.evaluate(policy, config.env_id, options.episodes, options.seed, config.env.kwargs)
    _say(console, config.env_id)
    _say(console, f"checkpoint     {source}")
    for line in _scores(report):
        _say(console, line)
    return DONE


def _scores(report: Report) -> list[str]:
    """One line, or one per task."""
    if not report.tasks:
        return [f"greedy return  {_score(report)}"]
    return [f"greedy return  {_score(part)}  {name}" for name, part in report.by_task.items()]


def _score(report: Report) -> str:
    low, high = min(report.returns), max(report.returns)
    return (
        f"{report.mean_return:.1f} +- {report.std_return:.1f} over {len(report.returns)} episodes"
        f" ({low:.1f} to {high:.1f})"
    )


def _list(console: Console) -> int:
    runs = rundir.all_runs()
    if not runs:
        _say(console, f"no runs under {rundir.ROOT}/")
    for directory in runs:
        last = rundir.last_metrics(directory)
        score = last.get("rollout/ep_rew_mean")
        shown = f"return {score:.1f}" if isinstance(score, float | int) else "no episode yet"
        _say(console, f"{directory}  step {last.get('step', 0)}  {shown}")
    return DONE


# -- parsing -----------------------------------------------------------------------------------------------------

registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _schedules(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    optional = get_args(info.type) == (Schedule, type(None))
    if info.type is not Schedule and not optional:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{'None|' if optional else ''}NUMBER|SHAPE:START:END",
        instance_from_str=lambda args: None if optional and args[0] == "None" else schedule(args[0]),
        is_instance=lambda x: isinstance(x, Schedule) or (optional and x is None),
        str_from_instance=lambda x: [str(x)],
    )


@registry.primitive_rule
def _json_objects(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    if info.type_origin is not dict:
        return None

    def read(args: list[str]) -> dict[str, Any]:
        value = json.loads(args[0])
        if not isinstance(value, dict):
            raise ValueError(f"{args[0]} is not a JSON object")
        return value

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="JSON",
        instance_from_str=read,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=lambda x: [json.dumps(x)],
    )


def _parse(kind: type[Any], command: str, arguments: list[str], default: Any = None) -> Any:
    extra = {} if default is None else {"default": default}
    return tyro.cli(kind, prog=f"levelhead {command}", args=arguments, registry=registry, **extra)
