"""The command line."""

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tyro
from rich.console import Console

from levelhead import api, rundir
from levelhead.config import Config
from levelhead.errors import CheckpointError, ConfigError, TrainingFault
from levelhead.presets import preset
from levelhead.schedules import Schedule, schedule

USAGE = """usage: levelhead COMMAND ...

  train ENV_ID     train a policy and write a run directory
  eval RUN         play whole episodes greedily
  resume RUN       continue a run from its last checkpoint
  list             the runs under runs/, with their last scores

RUN is a run directory, a checkpoint in one, or 'latest'.
`levelhead COMMAND --help` lists the options of a command; `levelhead train ENV_ID --help` with that environment's
presets."""

DONE, FAULT, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class EvalOptions:
    """Play whole episodes greedily with the policy of a run."""

    run: tyro.conf.Positional[str]
    """Run directory, checkpoint in one, or 'latest'."""
    episodes: int = 10
    """How many episodes."""
    seed: int = 0
    """Of the environments."""


@dataclass(frozen=True)
class ResumeOptions:
    """Continue a run from its last checkpoint, in the same directory."""

    run: tyro.conf.Positional[str]
    """Run directory, checkpoint in one, or 'latest'."""
    total_steps: int | None = None
    """A new end; schedules stretch to it."""


@dataclass(frozen=True)
class ListOptions:
    """The runs under runs/, oldest first."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs a command and exits with its status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    console = Console()
    try:
        status = _dispatch(given, console)
    except (ConfigError, CheckpointError) as error:
        status = _complain(error, BAD_USAGE)
    except TrainingFault as error:
        status = _complain(error, FAULT)
    except KeyboardInterrupt:
        status = _complain("interrupted; the iteration under way is lost", INTERRUPTED)
    sys.exit(status)


def _complain(error: object, status: int) -> int:
    Console(stderr=True).print(f"levelhead: {error}", soft_wrap=True, highlight=False, markup=False)
    return status


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
            console.print(USAGE, highlight=False, markup=False)
            return DONE
        case "--version":
            console.print(f"levelhead {rundir.version('levelhead')}", highlight=False)
            return DONE
        case _:
            near = difflib.get_close_matches(command, ("train", "eval", "resume", "list"), n=1)
            hint = f"did you mean {near[0]!r}?" if near else "see levelhead --help"
            raise ConfigError(f"unknown command {command!r}; {hint}")


# -- commands ----------------------------------------------------------------------------------------------------


def _train(arguments: list[str], console: Console) -> int:
    env_id = arguments[0] if arguments else ""
    if not env_id.startswith("-") and env_id:
        default = preset(env_id)
    elif env_id in ("-h", "--help"):
        default = Config("ENV_ID")
    else:
        raise ConfigError("train needs an environment's id first: levelhead train CartPole-v1 [OPTIONS]")
    config = _parse(Config, "train", arguments, default)
    console.print(
        f"{config.env_id}, value head {config.value}: {config.scale_promise}", soft_wrap=True, highlight=False
    )
    return _finish(api.train(config.env_id, config=config, console=console), console)


def _resume(options: ResumeOptions, console: Console) -> int:
    return _finish(api.resume(options.run, total_steps=options.total_steps, console=console), console)


def _finish(run: api.Run, console: Console) -> int:
    """Says where the run is, how good the policy is, and what to type next."""
    console.print(f"run directory  {run.directory}", soft_wrap=True, highlight=False)
    if run.interrupted:
        console.print(f"interrupted at step {run.step}; everything is saved. Continue with")
        console.print(f"  levelhead resume {run.directory}", soft_wrap=True, highlight=False)
        return INTERRUPTED
    episodes = 20
    report = api.evaluate(run.policy, run.config.env_id, episodes, run.config.seed, run.config.env.kwargs)
    console.print(
        f"greedy return  {report.mean_return:.1f} +- {report.std_return:.1f} over {episodes} episodes", highlight=False
    )
    console.print(
        f"next           levelhead eval latest --episodes 100\n"
        f"               levelhead resume latest --total-steps {2 * run.config.total_steps}\n"
        f"               tensorboard --logdir {run.directory / 'tb'}",
        soft_wrap=True,
        highlight=False,
    )
    return DONE


def _eval(options: EvalOptions, console: Console) -> int:
    policy = api.load_policy(options.run)
    config = rundir.read_info(api.run_directory(options.run)).config
    report = api.evaluate(policy, config.env_id, options.episodes, options.seed, config.env.kwargs)
    console.print(
        f"{config.env_id}: greedy return {report.mean_return:.2f} +- {report.std_return:.2f}"
        f" over {options.episodes} episodes (min {min(report.returns):.2f}, max {max(report.returns):.2f})",
        highlight=False,
    )
    return DONE


def _list(console: Console) -> int:
    for directory in rundir.all_runs():
        lines = (directory / rundir.METRICS).read_text().splitlines()
        last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        score = last.get("rollout/ep_rew_mean")
        shown = "no episode yet" if score is None else f"return {score:.1f}"
        console.print(f"{directory}  step {last.get('step', 0)}  {shown}", soft_wrap=True, highlight=False)
    return DONE


# -- parsing -----------------------------------------------------------------------------------------------------

registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _schedules(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    if info.type is not Schedule:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NUMBER|SHAPE:START:END",
        instance_from_str=lambda args: schedule(args[0]),
        is_instance=lambda x: isinstance(x, Schedule),
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
