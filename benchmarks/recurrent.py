"""Memory and masks beside sb3-contrib: steps per second in turn, and with --learn returns over seeds.

    python benchmarks/recurrent.py [--rounds 5] [--kinds recurrent maskable]
    python benchmarks/recurrent.py --learn [--seeds 1 2 3 4 5]

`recurrent` is RecurrentPPO on CartPole without velocities, `maskable` MaskablePPO on connect-four against an opponent
that moves at random. Each run is a process of its own on one torch thread; training alone is timed, from the first step
to the last update. Rounds alternate which library begins, and ratios are taken within a round, so that a machine that
drifts does so for both. `--learn` runs the whole number of steps, appends to results/recurrent.jsonl whatever is not in
there yet, and prints greedy returns over 50 episodes from start states that are the same for all.

Equal: environments, network (an LSTM of 64 units each for actor and critic, their hidden layers behind it), tanh,
rollouts, epochs, number and size of minibatches, step sizes, discounts, coefficients, Adam's eps, no value clip.

Not equal, as neither library can be told to do as the other does:

- a minibatch with memory is 2 whole columns of 128 steps in levelhead; in RecurrentPPO it is 256 rows, one environment
  after another, cut at any row, each piece of an episode a sequence of its own, which starts from the state kept when
  acting and is padded to the longest. So it backpropagates through fewer steps; its batches are cut at another row in
  each epoch, but their neighbours stay together;
- RecurrentPPO advances both LSTMs at every step of acting, levelhead the actor's alone, the critic's afterwards in one
  pass over the rollout;
- levelhead's LSTM begins with orthogonal weights and biases of 0, RecurrentPPO's with PyTorch's uniform ones;
- levelhead's critic predicts on PopArt's axis and starts at 0, the others' predicts raw returns and starts at random;
- levelhead standardises advantages over the rollout, sb3-contrib over the minibatch, padding left out;
- levelhead clips the gradients of actor and critic each by its own norm, sb3-contrib by their common norm.
"""

import argparse
import hashlib
import itertools
import statistics
from dataclasses import replace
from typing import Any

import records
from peer_task import EPISODES, PeerTask
from peers import drive
from stats import interval, iqm

TASKS = {
    "recurrent": PeerTask("levelhead/HiddenVelocityCartPole-v0", 500_000, learning_rate=(1e-3, 0.0)),
    "maskable": PeerTask(
        "levelhead/ConnectFour-v0",
        200_000,
        learning_rate=(1e-3, 0.0),
        entropy_coef=0.01,
        also=("levelhead/ConnectFourGreedy-v0",),
    ),
}
LIBRARIES = {"levelhead": "levelhead", "sb3contrib": "sb3-contrib"}


def trained(library: str, kind: str, task: PeerTask) -> dict[str, Any]:
    if library == "levelhead":
        return drive("levelhead", "peer", task.to_json(), kind)
    return drive(library, kind, task.to_json())


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def speed(kinds: list[str], rounds: int, steps: int) -> None:
    print("Steps per second, learning included: median and range over rounds.\n")
    print("| | environment | " + " | ".join(LIBRARIES.values()) + " | ratio |\n|---|---|---|---|---|")
    for kind in kinds:
        task = whole(replace(TASKS[kind], also=()), steps)
        results: dict[str, list[float]] = {library: [] for library in LIBRARIES}
        for i in range(rounds):
            for library in LIBRARIES if i % 2 == 0 else reversed(LIBRARIES):
                results[library].append(trained(library, kind, replace(task, seed=i + 1))["steps_per_second"])
        ours, theirs = results.values()
        ratio = spread([a / b for a, b in zip(ours, theirs, strict=True)], 2)
        print(f"| {kind} | {task.env_id} | {spread(ours, 0)} | {spread(theirs, 0)} | {ratio} |", flush=True)


def learn(kinds: list[str], seeds: list[int], steps: int) -> None:
    kept = {(r["kind"], r["library"], r["seed"], r["task"]): r for r in records.read("recurrent")}
    tasks = {kind: whole(TASKS[kind], steps) for kind in kinds}
    digests = {kind: hashlib.sha256(task.to_json().encode()).hexdigest()[:8] for kind, task in tasks.items()}
    for seed, kind, library in itertools.product(seeds, kinds, LIBRARIES):
        key = (kind, library, seed, digests[kind])
        if key not in kept:
            result = trained(library, kind, replace(tasks[kind], seed=seed))
            named = dict(zip(("kind", "library", "seed", "task"), key, strict=True))
            kept[key] = {**named, "steps": tasks[kind].steps, **result}
            records.append("recurrent", kept[key])
    for kind, task in tasks.items():
        print(f"\n{kind}, {task.steps:,} steps: greedy return over {EPISODES} episodes, IQM over {len(seeds)} seeds\n")
        print("| library | " + " | ".join((task.env_id, *task.also)) + " |\n|---" + "|---" * (1 + len(task.also)) + "|")
        for library, name in LIBRARIES.items():
            rows = [kept[kind, library, seed, digests[kind]] for seed in seeds]
            scores = [[r["return"] for r in rows], *([r["also"][other] for r in rows] for other in task.also)]
            print(f"| {name} | " + " | ".join(map(shown, scores)) + " |")


def whole(task: PeerTask, steps: int) -> PeerTask:
    """The task with so many steps, or its own where 0, rounded up to whole rollouts."""
    return replace(task, steps=-(-(steps or task.steps) // task.rollout) * task.rollout)


def shown(scores: list[float]) -> str:
    low, high = interval(scores)
    digits = 2 if max(map(abs, scores)) < 20 else 1
    return f"{iqm(scores):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--learn", action="store_true", help="compare returns, not speed")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5], help="with --learn")
    parser.add_argument("--steps", type=int, default=0, help="20,480 where not given; with --learn the task's own")
    a = parser.parse_args()
    if a.learn:
        learn(a.kinds, a.seeds, a.steps)
    else:
        speed(a.kinds, a.rounds, a.steps or 20_480)


if __name__ == "__main__":
    main()
