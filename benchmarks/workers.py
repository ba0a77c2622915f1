"""Environments in processes that are killed, stopped, slow, or raise, at random moments: does the run go on?

    python benchmarks/workers.py [killed stopped slow raises] [--times 20] [--seed 1]

A run has its environments in two processes, of which a random one comes to harm again and again. Each loss must be
noticed within the time-out (and the learning of an iteration, during which nobody asks), its process replaced, the step
marked as truncated and not valid, and all of it counted in `health/env_restarts`. One loss more than `env.max_restarts`
must end the run with an error that says why, and leave a checkpoint. Appends a line per kind to results/workers.jsonl.
"""

import argparse
import json
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.sharedctypes import RawValue
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import records
from launch import children

import levelhead as lh
from levelhead import checkpoint
from levelhead.envs import Step, VecEnv, Workers, make_gymnasium

TIMEOUT = 1.0
"""Seconds."""
ENVS, WORKERS = 4, 2


class Victim(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole to which something happens once the number of its process stands in memory that all share."""

    def __init__(self, told: Any, harm: Callable[[], None]) -> None:
        super().__init__(gym.make("CartPole-v1"))
        self.told, self.harm = told, harm

    def step(self, action: Any):
        if self.told.value == os.getpid():
            self.told.value = 0
            self.harm()
        return super().step(action)


class Watched(VecEnv):
    """Environments whose losses are noted as the trainer sees them."""

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        self.num_envs, self.running = env.num_envs, env.running
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.steps = 0
        self.noticed = list[float]()
        self.marked = True
        """Whether every row that was lost was truncated and not terminated."""

    @property
    def restarts(self) -> int | None:
        return self.env.restarts

    def reset(self, seed: int):
        return self.env.reset(seed)

    def step(self, action: Any) -> Step:
        step = self.env.step(action)
        self.steps += 1
        if step.valid is not None:
            lost = ~step.valid
            self.noticed.append(time.monotonic())
            self.marked &= bool((step.truncated[lost] & ~step.terminated[lost]).all())
            self.marked &= int(lost.sum()) == ENVS // WORKERS
        return step

    def close(self) -> None:
        self.env.close()


def give_up() -> None:
    raise ArithmeticError("the simulator gave up")


INSIDE: dict[str, Callable[[], None]] = {"slow": partial(time.sleep, 1000.0), "raises": give_up}
"""What an environment does by itself."""
OUTSIDE = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
KINDS = (*OUTSIDE, *INSIDE)


def once(name: str, times: int, seed: int, run: Path) -> dict[str, Any]:
    """A run that survives so many losses, and ends by the next."""
    told, rng = RawValue("i", 0), np.random.default_rng((seed, *name.encode()))
    workers = Workers(WORKERS, TIMEOUT, max_restarts=times)
    make = partial(Victim, told, INSIDE.get(name, int))
    env = Watched(make_gymnasium(make, ENVS, backend="processes", workers=workers))
    done, delays = threading.Event(), list[float]()

    def trouble() -> None:
        while not done.wait(float(rng.uniform(0.05, 0.5))):
            if not env.steps:  # one that is lost to a reset is marked in no step
                continue
            if len(env.noticed) == times:  # an iteration must yet count what was lost before
                done.wait(1.0)
            before, at, target = len(env.noticed), time.monotonic(), int(rng.choice(children(os.getpid())))
            if name in OUTSIDE:
                os.kill(target, OUTSIDE[name])
            else:
                told.value = target
            while len(env.noticed) == before and not done.wait(0.01):
                pass
            if len(env.noticed) > before:
                delays.append(env.noticed[before] - at)

    config = lh.Config("CartPole-v1", 10**8, num_envs=ENVS, num_steps=64, device="cpu", checkpoint_every=0, run_dir=run)
    thread, said = threading.Thread(target=trouble), ""
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lh.train(env, config=config)
    except lh.TrainingFault as fault:
        said = str(fault)
    finally:
        done.set()
        thread.join()
        env.close()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "kind": name,
        "losses": len(env.noticed),
        "timeout": TIMEOUT,
        "slowest_iteration": round(max(line["time/learn"] for line in lines), 2),
        "noticed_after": [round(float(f(delays)), 3) for f in (min, np.median, max)],
        "marked": env.marked,
        "counted": lines[-1]["health/env_restarts"],
        "says_why": f"{times} restarts are used up" in said and "state saved as" in said,
        "said": " ... ".join(dict.fromkeys((said.splitlines()[0], said.splitlines()[-1]))),
        "saved": len(checkpoint.checkpoints(run)) == 1,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all where not given")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    if unknown := set(a.kinds) - set(KINDS):
        parser.error(f"no {', '.join(unknown)}; there are {', '.join(KINDS)}")
    results = list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as directory:
        for name in a.kinds or KINDS:
            results.append(once(name, a.times, a.seed, Path(directory) / name))
            records.append("workers", {"draw": a.seed, **results[-1]})
    print(
        "\n| | losses | noticed after, median and most | marked | counted | the next one ends the run, and says why |"
    )
    print("|" + "---|" * 6)
    for r in results:
        _, median, most = r["noticed_after"]
        print(
            f"| {r['kind']} | {r['losses']} | {median:.2f} s, {most:.2f} s | {r['marked']} | {r['counted']:.0f} |"
            f" {r['says_why'] and r['saved']} |"
        )
    for r in results:
        late = r["noticed_after"][2] > TIMEOUT + r["slowest_iteration"] + 1.0
        if late or not (r["losses"] == r["counted"] == a.times and r["marked"] and r["says_why"] and r["saved"]):
            raise SystemExit(f"something went wrong: {r}")


if __name__ == "__main__":
    main()
