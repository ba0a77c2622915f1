"""The loop around a trainer: writers, checkpoints, evaluation, interruption."""

import signal
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType

import torch
from rich.console import Console

from levelhead import checkpoint, rundir
from levelhead.accelerate import CompiledEpochs, NativeEpochs
from levelhead.config import Config
from levelhead.distributed import from_first, gathered_values, is_first, leave_word, ranks
from levelhead.envs import EnvState
from levelhead.errors import StorageError, TrainingFault
from levelhead.threads import Threads, wanted
from levelhead.trainer import Iteration, Trainer
from levelhead.watches import build_watches
from levelhead.writers import ConsoleWriter, JsonlWriter, TensorBoardWriter, Writer


def run_loop(
    trainer: Trainer, config: Config, directory: Path, score: Callable[[], dict[str, float]], console: Console | None
) -> bool:
    """Trains to the end, writing metrics and checkpoints on the way.

    Args:
        trainer: at its beginning, or where a checkpoint left it.
        config: of the run.
        directory: of the run.
        score: evaluates the policy as it is now, and answers metrics.
        console: where progress is shown; None for silence.

    Returns:
        Whether a signal ended training early; everything is saved then.

    Raises:
        TrainingFault: something was not finite; the state from before is saved.
        StorageError: a checkpoint or metrics cannot be written, and `config` doesn't let training go on all the same.
    """
    writers: list[Writer] = []
    from_first(lambda: writers.extend(_writers(trainer, config, directory, console)))
    forgiving = config.write_failure == "warn"
    watches = build_watches(config, trainer.policy.action_space)
    threads = _threads(trainer, config)
    with _interruption() as interrupted:
        try:
            for iteration in trainer:
                evaluated = score if _due(iteration, config.eval_every) else None
                from_first(partial(_report, iteration, evaluated, writers, forgiving))
                for watch in watches:
                    if (message := watch(iteration.metrics, iteration.steps)) and is_first():
                        warnings.warn(f"iteration {iteration.iteration}: {message}", stacklevel=2)
                found = threads.note(iteration.metrics["time/fps"])
                if found and console is not None and is_first():
                    console.print(found, highlight=False)
                stop = any(gathered_values(interrupted.is_set()))
                if trainer.done or stop or _due(iteration, config.checkpoint_interval):
                    under_way = trainer.under_way()
                    with _forgiving(forgiving and not trainer.done and not stop):
                        _save(trainer, config, directory, iteration, under_way)
                    trainer.pass_checkpoint(under_way)
                if stop:
                    break
        except TrainingFault as fault:
            raise TrainingFault(f"{fault}; {_saved(trainer, config, directory)}") from fault
        except Exception as error:
            if trainer.failed:  # by an error of an environment's own, which others know of
                error.add_note(_saved(trainer, config, directory))
            raise
        finally:
            trainer.collector.settle()  # before anybody closes environments that are stepped ahead
            with ExitStack() as closing:
                for writer in writers:
                    closing.callback(writer.close)
    return not trainer.done


def _writers(trainer: Trainer, config: Config, directory: Path, console: Console | None) -> list[Writer]:
    writers: list[Writer] = [
        JsonlWriter(directory / rundir.METRICS, trainer.iteration),
        TensorBoardWriter(directory / "tb", trainer.step),
    ]
    if console is not None:
        head, device = type(trainer.policy.value_head).__name__, trainer.policy.device
        together = f" on {ranks()} ranks" if ranks() > 1 else ""
        for line in (
            f"{config.env_id}, {head}, {device}{together}: {trainer.scale_promise}",
            trainer.engines,
            f"writing to {directory}",
        ):
            console.print(line, soft_wrap=True, highlight=False, markup=False)
        writers.append(ConsoleWriter(config.total_steps, console))
    return writers


def _threads(trainer: Trainer, config: Config) -> Threads:
    phases = trainer.learner.every_phase()
    native = [phase for phase in phases if isinstance(phase, NativeEpochs)]
    asked = wanted(config.threads, native=bool(native))
    if any(isinstance(phase, CompiledEpochs) for phase in phases):
        asked = asked or 1  # with another number they would be compiled anew
    return Threads(asked, partial(_use_threads, native))


def _use_threads(native: Sequence[NativeEpochs], count: int) -> None:
    """Native code's where that learns, and else torch's, whose others would wait busily in the way of native code's."""
    for phase in native:
        phase.threads = count
    torch.set_num_threads(1 if native else count)


def _due(iteration: Iteration, every: int) -> bool:
    """Whether a multiple of `every` steps was passed in this iteration."""
    return every > 0 and iteration.step // every > (iteration.step - iteration.steps) // every


def _report(
    iteration: Iteration, score: Callable[[], dict[str, float]] | None, writers: list[Writer], forgiving: bool
) -> None:
    """What the first rank does after every iteration, for all: evaluates if it is time to, and writes."""
    if score is not None:
        iteration.metrics.update(score())
    for writer in writers:
        with _forgiving(forgiving):
            writer.write(iteration)


@contextmanager
def _forgiving(forgiving: bool) -> Generator[None]:
    """Around writing: a warning in place of an error, where that is asked for."""
    try:
        yield
    except StorageError as error:
        if not forgiving:
            raise
        warnings.warn(f"{error}; training goes on", stacklevel=1)


def _save(
    trainer: Trainer, config: Config, directory: Path, iteration: Iteration | None, under_way: EnvState | None = None
) -> Path:
    """What all ranks have in common, and the episodes under way where environments can go on from them, written by the
    first rank, and old checkpoints deleted.

    Its score is that of the iteration that it was saved in.
    """
    leave_word(f"saving after iteration {trainer.iteration}")
    trainer.require_equal()
    state = trainer.state_dict()
    tensors = {name: state[name] for name in ("policy", "optimizer", "advantage", "rewards")}
    values = {"progress": state["progress"]}
    if under_way is not None:
        tensors["environment"], values["under_way"] = under_way
    metric = "eval/mean_return" if config.eval_every else "rollout/ep_rew_mean"
    score = None if iteration is None else iteration.metrics.get(metric)

    def write() -> Path:
        path = checkpoint.save(directory, trainer.step, tensors, {"score": score, **values})
        if config.keep_checkpoints is not None:
            checkpoint.prune(directory, config.keep_checkpoints)
        return path

    return from_first(write)


def _saved(trainer: Trainer, config: Config, directory: Path) -> str:
    """Saves after a fault, and says where, or why not."""
    try:
        return f"state saved as {_save(trainer, config, directory, None)}"
    except StorageError as error:
        return f"state not saved: {error}"


@contextmanager
def _interruption() -> Generator[threading.Event]:
    """An event that SIGINT, SIGTERM and SIGHUP set, so that the iteration under way is finished and saved.

    A second signal has its usual effect at once. One that is ignored (SIGINT, in a job that a shell script started in
    the background) stays so. Outside the main thread Python delivers no signals; nothing changes there.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in handlers.items() if handler is not signal.SIG_IGN}

    def handle(number: int, _: FrameType | None) -> None:
        event.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, handle)
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
