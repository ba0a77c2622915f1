"""The front door: train, resume, evaluate and load, from Python."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium.vector import VectorEnv
from rich.console import Console
from torch import Tensor

from levelhead import checkpoint, rundir
from levelhead.actions import ActionHead
from levelhead.builders import build_policy, build_trainer, place_shards
from levelhead.config import Config, Device, ObjectiveKind, ValueKind, require_default
from levelhead.distributed import from_first, is_first, launch, process_group, ranks, restarted
from levelhead.envs import VecEnv, choose_backend, task_names
from levelhead.errors import CheckpointError, ConfigError
from levelhead.evaluation import Report, run_episodes
from levelhead.files import parse
from levelhead.handover import (
    AnyEnv,
    Parts,
    made,
    opened,
    require_consistent,
    require_episodes,
    require_instance,
    require_parts,
    require_used,
)
from levelhead.loop import run_loop
from levelhead.networks import Network, Policy
from levelhead.objectives import Objective
from levelhead.preparation import agree, prepare
from levelhead.presets import preset
from levelhead.rundir import RunInfo
from levelhead.spaces import same_shapes
from levelhead.trainer import Trainer
from levelhead.values import ValueHead
from levelhead.writers import metrics_until


@dataclass(frozen=True)
class Run:
    """What training leaves behind."""

    directory: Path
    policy: Policy
    config: Config
    step: int
    """Environment steps taken."""
    interrupted: bool
    """Whether a signal ended training early; everything was saved."""


def train(
    env: AnyEnv,
    *,
    config: Config | None = None,
    total_steps: int | None = None,
    seed: int | None = None,
    value: ValueKind | ValueHead | None = None,
    num_envs: int | None = None,
    reward_scale: float | None = None,
    run_dir: str | Path | None = None,
    device: Device | None = None,
    network: Network | None = None,
    action_head: ActionHead | None = None,
    objective: ObjectiveKind | Objective | None = None,
    console: Console | None = None,
) -> Run:
    """Trains a policy with PPO and writes a run directory.

    Args:
        env: id in Gymnasium's registry (several, joined by `+`, for a policy that plays them all), a function that
            makes an environment, a Gymnasium vector environment, or a `VecEnv`.
        config: everything; the preset for the environment where not given. The arguments below override it.
        total_steps: environment steps, rounded up to whole iterations.
        seed: decides every random number of the run.
        value: name of a value head, or one that reads the critic's features.
        num_envs: environments stepped side by side.
        reward_scale: multiplies every reward that the learner sees.
        run_dir: where to write; runs/<env>/<UTC time>-s<seed> where not given.
        device: `auto`, `cpu` or `cuda`.
        network: torsos of your own.
        action_head: one of your own, that reads the actor's features.
        objective: `clip`, `kl`, `trpo`, `a2c`, `vpg`, or an objective of your own.
        console: where progress is shown; None for silence.

    Raises:
        ConfigError: a setting or a combination that cannot work; nothing has been written or run.
        TrainingFault: something was not finite; the state from before the iteration is saved.
        StorageError: a checkpoint or metrics cannot be written; `config.write_failure` may let training go on.

    torch's CPU threads are set for the whole process, as `config.threads` says. An environment that is not given by id
    starts from generic defaults: pass `config=lh.preset("Pendulum-v1")` for others.
    """
    name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__).strip("<>")
    require_instance("value", value, str | ValueHead, "a name, or a ValueHead")
    require_instance("network", network, Network, "a Network")
    require_instance("action_head", action_head, ActionHead, "an ActionHead")
    require_instance("objective", objective, str | Objective, "a name, or an Objective")
    parts = Parts(
        env=None if isinstance(env, str) else env,
        network=network,
        value=value if isinstance(value, ValueHead) else None,
        action_head=action_head,
        objective=objective if isinstance(objective, Objective) else None,
    )
    start = config or (preset(name, objective) if isinstance(objective, str) else preset(name))
    with process_group():
        given = {
            "total_steps": total_steps,
            "seed": seed,
            "value": value if isinstance(value, str) else None,
            "objective": objective if isinstance(objective, str) else None,
            "num_envs": env.num_envs * ranks() if isinstance(env, VectorEnv | VecEnv) else num_envs,
            "reward_scale": reward_scale,
            "run_dir": None if run_dir is None else Path(run_dir),
            "device": device,
        }
        config = replace(start, env_id=name, **{k: v for k, v in given.items() if v is not None})
        require_consistent(env, config, num_envs)
        require_used(config, network, action_head, parts.objective)
        if ranks() == 1:
            require_default("parallel", config.parallel, ("timeout", "cutoff"), "there is one process")
        return _begin(config, env, parts, console)


def _begin(config: Config, env: AnyEnv, parts: Parts, console: Console | None, before: Path | None = None) -> Run:
    """A new run, in the directory of one `before` it; or the one that the same `torchrun` call had begun before it lost
    a process."""
    agree(config)
    before = before or from_first(lambda: rundir.of_launch(config, launch()) if restarted() else None)
    if before is not None and from_first(lambda: bool(checkpoint.checkpoints(before))):
        return _continue(before, None, parts, console)
    prepare(config)
    if isinstance(env, str) and config.backend == "auto" and not task_names(env):
        # What goes on elsewhere must go on with the same.
        config = replace(config, backend=from_first(lambda: choose_backend(env, config.env.kwargs)))
    shards = place_shards(config)
    config = replace(config, parallel=replace(config.parallel, shards=shards.count))
    with opened(env, config, shards) as vec:
        policy = build_policy(
            config, vec.observation_space, vec.action_space, parts.network, parts.value, vec.tasks, parts.action_head
        )
        trainer = build_trainer(config, vec, policy, parts.objective)
        directory = before or from_first(lambda: rundir.create(config))
        info = RunInfo(config, vec.observation_space, vec.action_space, vec.tasks, parts.given, launch())
        with _held(directory):
            from_first(lambda: rundir.write_info(directory, info))
            return _loop(trainer, config, directory, env, console)


def resume(
    run: str | Path,
    *,
    total_steps: int | None = None,
    env: AnyEnv | None = None,
    network: Network | None = None,
    value: ValueHead | None = None,
    action_head: ActionHead | None = None,
    objective: Objective | None = None,
    console: Console | None = None,
) -> Run:
    """Continues a run from its last checkpoint, or from the given one, in the same directory; one that ended before its
    first begins anew there, with a warning.

    A run that was killed outright ends with the same parameters as one that never was. One that a signal ended goes on
    from the moment at which it was saved, with new episodes where environments cannot tell their state.

    Args:
        run: run directory, checkpoint in one (`RUN/checkpoints/best` is its best), or `latest`.
        total_steps: a new end; schedules stretch to it.
        env, network, value, action_head, objective: what was handed over as objects when the run began.
        console: where progress is shown; None for silence.

    Raises:
        ConfigError: no run there, an object is missing or needless, or nothing is left to do.
        CheckpointError: the checkpoint is missing or damaged.
    """
    parts = Parts(env, network, value, action_head, objective)
    with process_group():
        unsaved = from_first(lambda: _unsaved(run, total_steps, parts))
        if unsaved is None:
            return _continue(run, total_steps, parts, console)
        directory, config = unsaved
        environment = config.env_id if env is None else env
        require_consistent(environment, config, config.num_envs)
        return _begin(config, environment, parts, console, directory)


def _unsaved(run: str | Path, total_steps: int | None, parts: Parts) -> tuple[Path, Config] | None:
    """The directory and config of a run that never came to a checkpoint; None of others.

    Raises:
        CheckpointError: it did, and none is left.
    """
    directory = rundir.find(run)
    # Whatever lies there under another name was a checkpoint once, and is no reason to forget all.
    if any((directory / "checkpoints").glob("[!.]*")) or not (directory / rundir.CONFIG).exists():
        return None
    config = _info(directory, total_steps, parts).config
    lines = (parse(line) for line in metrics_until(directory / rundir.METRICS))
    # The line of the iteration that a checkpoint is due in is written before it.
    due = [line for line in lines if config.checkpoint_interval and line["step"] >= config.checkpoint_interval]
    if len(due) > 1:
        raise CheckpointError(
            f"the checkpoints of {directory} are gone: its metrics go to step {due[-1]['step']}, and the first one was"
            f" due after {config.checkpoint_interval}; to begin anew, name another directory"
        )
    warnings.warn(f"{directory} has no checkpoint: the run begins anew", stacklevel=2)
    return directory, config


def _info(directory: Path, total_steps: int | None, parts: Parts) -> RunInfo:
    """What is known of a run that is to go on, with its new end."""
    info = rundir.read_info(directory)
    require_parts(info, parts.by_name)
    return info if total_steps is None else replace(info, config=replace(info.config, total_steps=total_steps))


class _Saved(NamedTuple):
    """What a run goes on from."""

    source: Path
    """The checkpoint."""
    info: RunInfo
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def _continue(run: str | Path, total_steps: int | None, parts: Parts, console: Console | None) -> Run:
    def read() -> _Saved:
        source = checkpoint.resolve(rundir.find(run))
        return _Saved(source, _info(source.parent.parent, total_steps, parts), *checkpoint.load(source))

    source, info, tensors, state = from_first(read)
    directory, env, config = source.parent.parent, parts.env, info.config
    if state["step"] >= config.total_steps and not restarted():  # after which the end may have been all that was left
        raise ConfigError(f"{source} has taken {state['step']} of {config.total_steps} steps: give more total steps")
    agree(config)
    prepare(config)
    environment = config.env_id if env is None else env
    require_consistent(environment, config, config.num_envs)
    with opened(environment, config, place_shards(config)) as vec:
        if vec.tasks != info.tasks:
            raise ConfigError(f"this run was made with tasks {info.tasks}; the environments play {vec.tasks}")
        with _damage_named(source):
            spaces = vec.observation_space, vec.action_space
            policy = build_policy(config, *spaces, parts.network, parts.value, vec.tasks, parts.action_head)
            trainer = build_trainer(config, vec, policy, parts.objective)
            trainer.load_state_dict({**tensors, **state})

        def supersede() -> None:
            for _ in metrics_until(directory / rundir.METRICS, trainer.iteration):
                pass  # damage is refused before anything changes
            rundir.set_aside(source)
            rundir.write_info(directory, info)

        with _held(directory):
            from_first(supersede)
            return _loop(trainer, config, directory, environment, console)


@contextmanager
def _held(directory: Path) -> Generator[None]:
    """Around writing to a run, which one training at a time may do.

    Raises:
        ConfigError: another one does.
    """
    held = from_first(lambda: rundir.hold(directory))
    try:
        yield
    finally:
        if is_first():
            rundir.let_go(held)


def _loop(trainer: Trainer, config: Config, directory: Path, env: AnyEnv, console: Console | None) -> Run:
    policy = trainer.policy
    interrupted = run_loop(trainer, config, directory, lambda: _score(policy, env, config), console)
    if interrupted and console is None and is_first():
        warnings.warn(f"interrupted at step {trainer.step}; {directory} has everything to go on from", stacklevel=4)
    return Run(directory, policy, config, trainer.step, interrupted)


def evaluate(
    policy: Policy, env: AnyEnv, episodes: int = 10, seed: int = 0, env_kwargs: dict[str, Any] | None = None
) -> Report:
    """Plays whole episodes greedily; changes nothing in the policy.

    Args:
        policy: who plays.
        env: as for `train`.
        episodes: how many.
        seed: of the environments.
        env_kwargs: for the constructor of an environment given by id.

    Raises:
        ConfigError: `episodes` or `seed` is out of range, or the environment doesn't fit the policy.
    """
    if episodes < 1:
        raise ConfigError(f"episodes is {episodes}; accepted: at least 1")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; accepted: 0 or more")
    if env_kwargs and not isinstance(env, str):
        raise ConfigError("env_kwargs has nothing to act on: the environment is handed over as an object")
    require_episodes("episodes", episodes, env)
    with made(env, max(min(episodes, 8), len(task_names(env))), env_kwargs or {}) as vec:
        if not same_shapes(vec.observation_space, policy.observation_space):
            raise ConfigError(f"{env} observes {vec.observation_space}, the policy {policy.observation_space}")
        if policy.action_space not in (None, vec.action_space):
            raise ConfigError(f"{env} takes actions {vec.action_space}, and the policy's are {policy.action_space}")
        if policy.tasks != vec.tasks:
            raise ConfigError(f"{env} plays tasks {vec.tasks}, and the policy's are {policy.tasks}")
        return run_episodes(policy, vec, episodes, seed)


def load_policy(
    run: str | Path,
    *,
    network: Network | None = None,
    value: ValueHead | None = None,
    action_head: ActionHead | None = None,
    device: Device = "cpu",
) -> Policy:
    """The policy of a run's last checkpoint, or of the given one, in evaluation mode.

    Args:
        run: run directory, checkpoint in one (`RUN/checkpoints/best` is its best), or `latest`.
        network, value, action_head: what was handed over as objects when the run began.
        device: where to put it.

    Raises:
        ConfigError: no run there, or an object is missing or needless.
        CheckpointError: the checkpoint is missing or damaged.
    """
    source = checkpoint.resolve(rundir.find(run))
    info = rundir.read_info(source.parent.parent)
    require_parts(info, {"network": network, "value": value, "action_head": action_head})
    tensors, _ = checkpoint.load(source)
    config = replace(info.config, device=device)
    spaces = info.observation_space, info.action_space
    with _damage_named(source):
        policy = build_policy(config, *spaces, network, value, info.tasks, action_head)
        policy.load_state_dict(tensors["policy"])
    return policy.eval()


# -- behind the door ---------------------------------------------------------------------------------------------


def _score(policy: Policy, env: AnyEnv, config: Config) -> dict[str, float]:
    report = evaluate(policy, env, config.eval_episodes, config.seed, config.env.kwargs)
    by_task = {f"eval/mean_return/{name}": part.mean_return for name, part in report.by_task.items()}
    return {"eval/mean_return": report.mean_return, **by_task}


@contextmanager
def _damage_named(source: Path) -> Generator[None]:
    """Turns what goes wrong while a state is loaded into an error that names the checkpoint."""
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source} doesn't fit the run that its config describes: {error}") from error
