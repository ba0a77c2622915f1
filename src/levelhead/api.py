"""The front door: train, resume, evaluate and load, from Python."""

import hashlib
import importlib
import platform
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from gymnasium.vector import VectorEnv
from rich.console import Console
from torch import Tensor

from levelhead import checkpoint, native, rundir
from levelhead.actions import ActionHead
from levelhead.builders import build_device, build_policy, build_trainer, place_shards
from levelhead.config import Config, Device, ObjectiveKind, ValueKind, require_default
from levelhead.distributed import (
    Shards,
    be_patient,
    from_first,
    gathered_values,
    launch,
    process_group,
    ranks,
    require_same,
    restarted,
)
from levelhead.envs import Backend, GymnasiumVecEnv, VecEnv, Workers, choose_backend, make_env, task_names
from levelhead.errors import CheckpointError, ConfigError
from levelhead.evaluation import Report, run_episodes
from levelhead.files import parse
from levelhead.loop import run_loop
from levelhead.networks import Network, Policy
from levelhead.objectives import Objective
from levelhead.presets import preset
from levelhead.rundir import RunInfo
from levelhead.serialize import flattened, to_json
from levelhead.spaces import same_shapes
from levelhead.threads import processors
from levelhead.values import ValueHead
from levelhead.writers import metrics_until

AnyEnv = str | Callable[[], gym.Env[Any, Any]] | VectorEnv[Any, Any, Any] | VecEnv


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


@dataclass(frozen=True)
class Parts:
    """What was handed over as objects, which no config can rebuild."""

    env: AnyEnv | None = None
    network: Network | None = None
    value: ValueHead | None = None
    action_head: ActionHead | None = None
    objective: Objective | None = None

    @property
    def by_name(self) -> dict[str, object]:
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @property
    def given(self) -> tuple[str, ...]:
        """The names of those that there are."""
        return tuple(name for name, part in self.by_name.items() if part is not None)


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
    _require_instance("value", value, str | ValueHead, "a name, or a ValueHead")
    _require_instance("network", network, Network, "a Network")
    _require_instance("action_head", action_head, ActionHead, "an ActionHead")
    _require_instance("objective", objective, str | Objective, "a name, or an Objective")
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
        _require_consistent(env, config, num_envs)
        _require_used(config, network, action_head, parts.objective)
        if ranks() == 1:
            require_default("parallel", config.parallel, ("timeout", "cutoff"), "there is one process")
        return _begin(config, env, parts, console)


def _begin(config: Config, env: AnyEnv, parts: "Parts", console: Console | None, before: Path | None = None) -> Run:
    """A new run, in the directory of one `before` it; or the one that the same `torchrun` call had begun before it lost
    a process."""
    _agree(config)
    before = before or from_first(lambda: rundir.of_launch(config, launch()) if restarted() else None)
    if before is not None and from_first(lambda: bool(checkpoint.checkpoints(before))):
        return _continue(before, None, parts, console)
    prepare(config)
    if isinstance(env, str) and config.backend == "auto" and not task_names(env):
        # What goes on elsewhere must go on with the same.
        config = replace(config, backend=from_first(lambda: choose_backend(env, config.env.kwargs)))
    shards = place_shards(config)
    config = replace(config, parallel=replace(config.parallel, shards=shards.count))
    with _opened(env, config, shards) as vec:
        policy = build_policy(
            config, vec.observation_space, vec.action_space, parts.network, parts.value, vec.tasks, parts.action_head
        )
        trainer = build_trainer(config, vec, policy, parts.objective)
        directory = before or from_first(lambda: rundir.create(config))
        info = RunInfo(config, vec.observation_space, vec.action_space, vec.tasks, parts.given, launch())
        from_first(lambda: rundir.write_info(directory, info))
        interrupted = run_loop(trainer, config, directory, lambda: _score(policy, env, config), console)
        return Run(directory, policy, config, trainer.step, interrupted)


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
        _require_consistent(environment, config, config.num_envs)
        return _begin(config, environment, parts, console, directory)


def _unsaved(run: str | Path, total_steps: int | None, parts: "Parts") -> tuple[Path, Config] | None:
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


def _info(directory: Path, total_steps: int | None, parts: "Parts") -> RunInfo:
    """What is known of a run that is to go on, with its new end."""
    info = rundir.read_info(directory)
    _require_parts(info, parts.by_name)
    return info if total_steps is None else replace(info, config=replace(info.config, total_steps=total_steps))


class _Saved(NamedTuple):
    """What a run goes on from."""

    source: Path
    """The checkpoint."""
    info: RunInfo
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def _continue(run: str | Path, total_steps: int | None, parts: "Parts", console: Console | None) -> Run:
    def read() -> _Saved:
        source = checkpoint.resolve(rundir.find(run))
        return _Saved(source, _info(source.parent.parent, total_steps, parts), *checkpoint.load(source))

    source, info, tensors, state = from_first(read)
    directory, env, config = source.parent.parent, parts.env, info.config
    if state["step"] >= config.total_steps and not restarted():  # after which the end may have been all that was left
        raise ConfigError(f"{source} has taken {state['step']} of {config.total_steps} steps: give more total steps")
    _agree(config)
    prepare(config)
    environment = config.env_id if env is None else env
    _require_consistent(environment, config, config.num_envs)
    with _opened(environment, config, place_shards(config)) as vec:
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
            checkpoint.supersede(source)
            rundir.write_info(directory, replace(info, launch=launch()))

        from_first(supersede)
        interrupted = run_loop(trainer, config, directory, lambda: _score(policy, environment, config), console)
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
    _require_episodes("episodes", episodes, env)
    with _made(env, max(min(episodes, 8), len(task_names(env))), env_kwargs or {}) as vec:
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
    _require_parts(info, {"network": network, "value": value, "action_head": action_head})
    tensors, _ = checkpoint.load(source)
    config = replace(info.config, device=device)
    spaces = info.observation_space, info.action_space
    with _damage_named(source):
        policy = build_policy(config, *spaces, network, value, info.tasks, action_head)
        policy.load_state_dict(tensors["policy"])
    return policy.eval()


def run_directory(run: str | Path) -> Path:
    """The run directory that a run, a checkpoint in it, or `latest` means."""
    return checkpoint.resolve(rundir.find(run)).parent.parent


def prepare(config: Config) -> None:
    """Imports the modules that a config names and sets torch's threads and precision, as training and evaluation need
    it.

    Raises:
        ConfigError: a module cannot be imported, or the device has no such precision.

    Warns:
        UserWarning: the processor computes in the precision by emulation alone.
    """
    reduced = config.network.precision == "tf32"
    if reduced and build_device(config.device).type != "cuda":
        raise ConfigError("network.precision is tf32, which GPUs have; accepted here: float32, bfloat16, float64")
    if config.network.precision == "bfloat16" and build_device(config.device).type == "cpu":
        _warn_of_emulation()
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    for module in config.imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"cannot import {module}: {error!r}") from error
    if config.threads:
        torch.set_num_threads(min(config.threads, processors()))


# -- behind the door ---------------------------------------------------------------------------------------------


def _warn_of_emulation() -> None:
    if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
        warnings.warn(
            "network.precision is bfloat16, which this processor has no instructions for: float32 is much faster",
            stacklevel=4,
        )


def _agree(config: Config) -> None:
    """Makes sure that ranks have the same before them, and that native code rounds alike on all of them."""
    require_same(_common_ground(config))
    be_patient(config.parallel.timeout)
    native.limit(min(gathered_values(native.best_instruction_set()), key=native.INSTRUCTION_SETS.index))


def _common_ground(config: Config) -> dict[str, str]:
    """What must be the same on all ranks."""
    if ranks() == 1:
        return {}
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("**/*.py")):
        code.update(path.read_bytes())
    versions = {f"the version of {name}": version(name) for name in ("torch", "gymnasium", "numpy")}
    built = {} if config.engine == "torch" else {"native code": "built" if native.available() else "not built"}
    return {**flattened(to_json(config)), **versions, **built, "levelhead's code": code.hexdigest()[:12]}


def _score(policy: Policy, env: AnyEnv, config: Config) -> dict[str, float]:
    report = evaluate(policy, env, config.eval_episodes, config.seed, config.env.kwargs)
    by_task = {f"eval/mean_return/{name}": part.mean_return for name, part in report.by_task.items()}
    return {"eval/mean_return": report.mean_return, **by_task}


@contextmanager
def _opened(env: AnyEnv, config: Config, shards: Shards) -> Generator[VecEnv]:
    """This process's part of a run's environments; closed afterwards, unless they were handed over."""
    here = config.num_envs * shards.here // shards.count
    workers = Workers(config.env.workers, config.env.timeout, config.env.max_restarts)
    with _made(env, here, config.env.kwargs, config.backend, workers, shards.here) as vec:
        yield vec


@contextmanager
def _made(
    env: AnyEnv,
    num_envs: int,
    kwargs: dict[str, Any],
    backend: Backend = "sync",
    workers: Workers | None = None,
    shards: int = 1,
) -> Generator[VecEnv]:
    """The environments that `env` stands for; closed afterwards, unless they were handed over."""
    if shards > 1 and isinstance(env, VecEnv | VectorEnv):
        raise ConfigError(f"environments handed over are one shard, and each process is to have {shards}")
    if isinstance(env, VecEnv):
        yield env
    elif isinstance(env, VectorEnv):
        yield GymnasiumVecEnv(env)
    else:
        vec = make_env(env, num_envs, kwargs, backend, workers, shards)
        try:
            yield vec
        finally:
            vec.close()


def _require_consistent(env: AnyEnv, config: Config, num_envs: int | None) -> None:
    """Refuses settings that an environment handed over as an object would leave without effect."""
    if config.eval_every:
        _require_episodes("eval_episodes", config.eval_episodes, env)
    if isinstance(env, str):
        return
    made = isinstance(env, VectorEnv | VecEnv)
    if config.backend not in ("auto", "sync", *(() if made else ("processes",))):
        raise ConfigError(f"backend is {config.backend}, and the environment is handed over as an object")
    if config.env.kwargs:
        raise ConfigError("env.kwargs has nothing to act on: the environment is handed over as an object")
    if made:
        if num_envs not in (None, env.num_envs * ranks()):
            raise ConfigError(f"num_envs is {num_envs}, and the environments handed over are {env.num_envs * ranks()}")
        if config.eval_every:
            raise ConfigError("eval_every needs environments of its own: pass an id or a function")


def _require_episodes(name: str, episodes: int, env: AnyEnv) -> None:
    needed = len(task_names(env))
    if episodes < needed:
        raise ConfigError(f"{name} is {episodes}; {env} needs at least {needed}, one per task")


def _require_instance(name: str, given: object, kind: type | UnionType, accepted: str) -> None:
    if given is not None and not isinstance(given, kind):
        raise ConfigError(f"{name} is {given!r}; accepted: {accepted}")


def _require_used(
    config: Config, network: Network | None, action_head: ActionHead | None, objective: Objective | None
) -> None:
    """Refuses settings that a part handed over as an object would leave without effect."""
    default = preset(config.env_id, config.objective)
    if network is not None:
        reason = "the network is handed over as an object"
        layers = ("shared", "actor", "critic", "activation", "image_encoder")
        require_default("network", config.network, layers, reason, default.network)
        require_default("memory", config.memory, ("size", "place", "sharing"), reason, default.memory)
    if action_head is not None and config.action != default.action:
        raise ConfigError("action has settings that nothing reads: the action head is handed over as an object")
    if objective is not None:
        reason = "the objective is handed over as an object"
        require_default("ppo", config.ppo, ("clip_range", "dual_clip", "kl_target"), reason, default.ppo)
        if config.objective != "clip":
            raise ConfigError(f"objective {config.objective} has nothing to act on: {reason}")


def _require_parts(info: RunInfo, parts: Mapping[str, object]) -> None:
    """Refuses a missing object that the run was made with, and one that it was made without; of `parts` alone."""
    missing = [part for part, x in parts.items() if x is None and part in info.custom]
    needless = [part for part, x in parts.items() if x is not None and part not in info.custom]
    if needless:
        raise ConfigError(f"this run was made without objects for {', '.join(needless)}; its config rebuilds them")
    if missing:
        raise ConfigError(f"this run was made with objects that its config cannot rebuild; pass {', '.join(missing)}=")


@contextmanager
def _damage_named(source: Path) -> Generator[None]:
    """Turns what goes wrong while a state is loaded into an error that names the checkpoint."""
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{source} doesn't fit the run that its config describes: {error}") from error
