"""Environments side by side in processes of their own, none of which is waited for without end."""

import itertools
import mmap
import multiprocessing
import os
import signal
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector.utils import iterate

from levelhead.envs.sync import Notes, Room, StackedEnvs, make_room, reset_each, seeds_of, step_each
from levelhead.errors import ConfigError, TrainingFault
from levelhead.threads import processors
from levelhead.tree import tree_map

LOST = "lost"
"""In an info: rows whose step was lost with the process that took it."""


@dataclass(frozen=True)
class Workers:
    """How environments are spread over processes."""

    count: int = 0
    """Processes; 0 for one per processor."""
    timeout: float = 60.0
    """Seconds after which one that has not answered is given up."""
    max_restarts: int = 10
    """Of processes, in a run; the next loss ends it."""


class _Failure(NamedTuple):
    """What an environment raised."""

    reason: str


class _LostError(Exception):
    """A process that doesn't answer any more; the message says how that is known."""


class _SilentError(_LostError):
    """It may be there, and says nothing."""


class ProcessEnvs(StackedEnvs):
    """As `SyncEnvs`, with a share of the environments in each of several processes, which write to shared memory.

    A process that dies, hangs or whose environment raises is replaced. Its environments begin new episodes, the step is
    marked as truncated and as `LOST`, for nobody knows what it would have answered, and a warning says what happened.

    Processes are forked, so that they need not import anything, and factories need not be pickled. An environment
    must therefore bear being made in a fork of a process that has threads; those that start a GPU's runtime don't.

    Args:
        makes: a function per environment that makes it.
        workers: how many processes, and what is put up with.

    Attributes:
        restarts: of processes so far.

    Raises:
        ConfigError: an environment cannot be made.
        TrainingFault: (while stepping) more processes were lost than is put up with.
    """

    def __init__(self, makes: Sequence[Callable[[], gym.Env[Any, Any]]], workers: Workers | None = None) -> None:
        self.workers = workers or Workers()
        first = makes[0]()
        self._describe(first, len(makes))
        first.close()
        self._room = make_room(self.single_observation_space, self.num_envs, _shared_zeros)
        self._seed = 0
        self.restarts = 0
        count = min(self.workers.count or processors(), self.num_envs)
        edges = [self.num_envs * k // count for k in range(count + 1)]
        self._shares = [
            _Share(makes[start:stop], start, self._room.rows(start, stop), self.workers.timeout)
            for start, stop in itertools.pairwise(edges)
        ]
        # Also where the interpreter ends before anybody has closed them, and before multiprocessing, after priority 0,
        # waits for the processes, which it would for ever.
        self._end = Finalize(self, _end, (self._shares,), exitpriority=1)
        for begin in (_Share.start, self._begun):
            for share in self._shares:
                try:
                    begin(share)
                except _LostError as error:
                    self.close()
                    raise ConfigError(f"{share} cannot be made: {error}") from error

    def _begun(self, share: "_Share") -> None:
        try:
            share.begun()
        except _SilentError as error:
            if not self.workers.max_restarts:
                raise
            # A fork of a process that has threads may catch one of them with a lock in hand; the next one won't.
            warnings.warn(f"{share} not made: {error}; once more", stacklevel=3)
            self.restarts += 1
            share.restart()

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Environment i is seeded with `seed + i`, or with its own of a list."""
        seeds = seeds_of(seed, self.num_envs)
        if seeds[0] is not None:
            self._seed = seeds[0]
        self._ask([("reset", seeds[share.slice], options) for share in self._shares])
        notes, _ = self._answers()
        return self._room.observation, self._gathered(notes)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.step_async(actions)
        return self.step_wait()

    def step_async(self, actions: Any) -> None:
        """Starts a step, which `step_wait` answers."""
        given = list(iterate(self.action_space, actions))
        self._before = tree_map(np.copy, self._room.observation)
        self._ask([("step", given[share.slice]) for share in self._shares])

    def step_wait(self) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """What comes of the step."""
        room = self._room
        notes, lost = self._answers()
        for i in np.flatnonzero(lost).tolist():
            room.reward[i], room.terminated[i], room.truncated[i] = 0.0, False, True
            notes.append((i, {"final_obs": _row(self._before, i)}))
        infos = self._gathered(notes)
        if lost.any():
            infos[LOST] = lost
        return self._answer(infos)

    def _ask(self, questions: Sequence[tuple[Any, ...]]) -> None:
        for share, question in zip(self._shares, questions, strict=True):
            share.ask(question)

    def _answers(self) -> tuple[Notes, npt.NDArray[np.bool_]]:
        """Every share's notes on its question; and the environments of those that had to be replaced, bool `[N]`."""
        notes: Notes = []
        lost = np.zeros(self.num_envs, dtype=np.bool_)
        deadline = time.monotonic() + self.workers.timeout
        for share in self._shares:
            try:
                answer = share.answer(deadline)
            except _LostError as error:
                answer = self._replace(share, str(error))
                lost[share.slice] = True
            notes += [(share.start_row + i, note) for i, note in answer]
        return notes, lost

    def _replace(self, share: "_Share", reason: str) -> Notes:
        """A new process for a share, whose environments have begun new episodes."""
        while True:
            self.restarts += 1
            if self.restarts > self.workers.max_restarts:
                raise TrainingFault(f"{share} lost, and {self.workers.max_restarts} restarts are used up: {reason}")
            warnings.warn(
                f"{share} lost: {reason.splitlines()[-1]}; restart {self.restarts} of {self.workers.max_restarts}",
                stacklevel=2,
            )
            try:
                share.restart()
                # As unlike other seeds as any, and the same whenever the same is lost at the same point.
                rows = range(share.slice.start, share.slice.stop)
                drawn = (np.random.SeedSequence((self._seed, i, self.restarts)) for i in rows)
                share.ask(("reset", [int(seed.generate_state(1)[0]) for seed in drawn], None))
                return share.answer(time.monotonic() + self.workers.timeout)
            except _LostError as error:
                reason = str(error)

    def close_extras(self, **kwargs: Any) -> None:  # noqa: ARG002  # of the protocol
        self._end()


class _Share:
    """Some environments, and the process that they are in."""

    def __init__(
        self, makes: Sequence[Callable[[], gym.Env[Any, Any]]], start_row: int, room: Room, timeout: float
    ) -> None:
        self.makes, self.start_row, self.room, self.timeout = makes, start_row, room, timeout
        self.slice = slice(start_row, start_row + len(makes))
        self._process: Any = None
        self._connection: Any = None

    def __str__(self) -> str:
        last = self.slice.stop - 1
        return f"environment {last}" if last == self.start_row else f"environments {self.start_row} to {last}"

    def start(self) -> None:
        """Has the environments made.

        Raises:
            _LostError: there is no room for another process.
        """
        context = multiprocessing.get_context("fork")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, self._connection, os.getpid(), self.makes, self.room), daemon=True
        )
        try:
            self._process.start()
        except OSError as error:
            self._process = None
            raise _LostError(f"no process can be started: {error.strerror}") from error
        finally:
            theirs.close()  # or its end would never be noticed

    def begun(self) -> None:
        """Waits until they are made.

        Raises:
            _LostError: they cannot be.
        """
        self.answer(time.monotonic() + self.timeout)

    def restart(self) -> None:
        """Another process in place of this one, whose environments are made when this returns.

        Raises:
            _LostError: they cannot be.
        """
        self.stop()
        self.start()
        self.begun()

    def ask(self, question: tuple[Any, ...]) -> None:
        with suppress(OSError):  # which the answer that doesn't come will tell
            self._connection.send(question)

    def answer(self, deadline: float) -> Notes:
        """What it says until then.

        Raises:
            _LostError: it says nothing, is no more, or its environments have raised something.
        """
        try:
            if not self._connection.poll(max(0.0, deadline - time.monotonic())):
                raise _SilentError(f"no answer within {self.timeout:g} s")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            raise _LostError(f"its process ended with status {self._process.exitcode}") from error
        if isinstance(answer, _Failure):
            raise _LostError(answer.reason)
        return answer

    def dismiss(self) -> None:
        """Lets it come to its end by itself; other processes, forked later, have this end of the pipe too."""
        if self._process is not None:
            self.ask(("close",))
            self._connection.close()

    def stop(self, patience: float = 0.0) -> None:
        """Ends the process, by force if it doesn't within so many seconds."""
        if self._process is None:
            return
        self._connection.close()
        if patience:
            self._process.join(patience)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()
        self._process = None


def _end(shares: Sequence[_Share]) -> None:
    for share in shares:
        share.dismiss()
    for share in shares:
        share.stop(patience=5.0)


def _work(
    connection: Connection,
    other_end: Connection,
    parent: int,
    makes: Sequence[Callable[[], gym.Env[Any, Any]]],
    room: Room,
) -> None:
    """What a process does: it makes its environments, and answers questions until nobody is there to ask."""
    other_end.close()
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides when all is over
        signal.signal(number, signal.SIG_IGN)
    envs: list[gym.Env[Any, Any]] = []
    try:
        envs += [make() for make in makes]
        connection.send([])
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:
                    return
            match connection.recv():
                case "step", actions:
                    connection.send(step_each(envs, room, actions))
                case "reset", seeds, options:
                    connection.send(reset_each(envs, room, seeds, options))
                case _:
                    return
    except (EOFError, OSError):  # nobody is there any more
        pass
    except Exception:  # whatever an environment may raise
        connection.send(_Failure(traceback.format_exc()))
    finally:
        for env in envs:
            env.close()


def _shared_zeros(shape: int | tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """An array that forked processes share; it goes when the last of them does."""
    dimensions = (shape,) if isinstance(shape, int) else shape
    count = int(np.prod(dimensions))
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(dimensions)


def _row(observation: Any, i: int) -> Any:
    return tree_map(lambda x: x[i], observation)
