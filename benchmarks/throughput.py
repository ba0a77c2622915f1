"""Steps per second, whole-process time, peak memory, and seconds until CartPole is solved: levelhead and its peers.

    python benchmarks/throughput.py run                                             # all, or what is left of it
    python benchmarks/throughput.py run solve --contestants levelhead Stable-Baselines3 --rounds 5
    python benchmarks/throughput.py report

`run` appends to results/throughput.jsonl whatever is not in there yet; move that file away to measure anew. `report`
prints a table per task. Every run is a process of its own. A round runs every contestant once, with the round's number
as seed, every other round in reverse; ratios are taken within a round, so that a machine that drifts does so for all.

Steps per second are those of the last four fifths of the iterations, learning included; the process's time goes from
its creation to the end of training, imports included. `solve` is training until the mean return of the latest 100
episodes, those of training itself, is 475 or more, looked at after every iteration, or until the task's steps are over.

Equal (tasks.py): environments by Gymnasium and their number, rollouts, networks, epochs, minibatches, gamma, lambda,
clip, coefficients, norm of the gradient, learning rate linear to 0, standardised advantages, and one thread of torch,
two with pictures.

Not equal:

- levelhead takes its native gradient steps on two threads, as it has use for the second, unlike torch at these sizes;
  `levelhead, torch` has neither native code nor the second thread, and `levelhead, compile` takes its steps through
  torch.compile, actions natively. Its critic predicts on PopArt's axis, and it clips
  the gradients of actor and critic each by its own norm;
- `levelhead, vector` and `levelhead, envpool` step the same environments by other code: CartPole's own vector version
  in NumPy, ALE's for Pong, and EnvPool's in C++. A reset takes a step there, which isn't counted. `levelhead, halves`
  steps two halves of EnvPool's in turn; `levelhead, bfloat16` has ALE's, and convolutions in that precision;
- `levelhead, preset` has settings of its own, those of `levelhead train CartPole-v1`: learning rate from 1e-3 to 0 over
  100,000 steps, no entropy bonus, no value clip;
- PureJaxRL has gymnax's CartPole, in the same compiled program as all else;
- Stable-Baselines3, CleanRL, RSL-RL, Tianshou and PureJaxRL clip values in raw units, skrl, rl_games and levelhead on a
  standardised axis, SBX not at all;
- levelhead, rl_games and skrl standardise advantages over the rollout, the others over each minibatch;
- with pictures there are no layers between the network of Mnih et al. 2015, which actor and critic share, and the
  heads; only Stable-Baselines3 has a driver for that;
- weights begin as they do in each library, those of skrl's networks, which are the user's, as in torch;
- the docstrings of drivers/*_ppo.py say what else each of them does in its own way.
"""

import argparse
import itertools
import statistics
from dataclasses import dataclass, replace
from typing import Any

import records
from peers import drive
from tasks import TASKS, Task


@dataclass(frozen=True)
class Contestant:
    """What runs, and on which tasks it can."""

    library: str
    variant: tuple[str, ...] = ()
    """Of the library's driver."""
    tasks: tuple[str, ...] = ("cartpole", "halfcheetah", "solve")


OURS = "levelhead"
CONTESTANTS = {
    OURS: Contestant("levelhead", ("sync",), tuple(TASKS)),
    "levelhead, torch": Contestant("levelhead", ("torch",)),
    "levelhead, compile": Contestant("levelhead", ("compile",), ("cartpole", "halfcheetah")),
    "levelhead, vector": Contestant("levelhead", ("vector",), ("cartpole", "solve", "pong")),
    "levelhead, envpool": Contestant("levelhead", ("envpool",)),
    "levelhead, bfloat16": Contestant("levelhead", ("bfloat16",), ("pong",)),
    "levelhead, halves": Contestant("levelhead", ("halves",), ("cartpole", "halfcheetah")),
    "levelhead, preset": Contestant("levelhead", ("preset",), ("solve",)),
    "Stable-Baselines3": Contestant("sb3", tasks=tuple(TASKS)),
    "SBX": Contestant("sbx"),
    "CleanRL": Contestant("cleanrl"),
    "rl_games": Contestant("rlgames"),
    "skrl": Contestant("skrl"),
    "RSL-RL": Contestant("rslrl", tasks=("halfcheetah",)),
    "Tianshou": Contestant("tianshou"),
    "PureJaxRL": Contestant("purejaxrl", tasks=("cartpole", "solve")),
}
FIGURES = {"steps_per_second": ("steps/s", 0), "process_seconds": ("process, s", 1), "peak_mb": ("peak memory, MB", 0)}
"""What each is called, and digits after the point."""

Rows = dict[str, dict[int, dict[str, Any]]]
"""By contestant and round."""


def tasks(steps: int | None) -> dict[str, Task]:
    """The tasks, or with so many steps in place of their own, rounded up to whole rollouts."""
    if steps is None:
        return TASKS
    return {name: replace(task, steps=-(-steps // task.rollout) * task.rollout) for name, task in TASKS.items()}


def run(a: argparse.Namespace) -> None:
    kept = {(r["task"], r["contestant"], r["round"], r["settings"]) for r in records.read("throughput")}
    chosen = {name: task for name, task in tasks(a.steps).items() if name in (a.tasks or TASKS)}
    names = [name for name in CONTESTANTS if name in (a.contestants or CONTESTANTS)]
    # Rounds outermost: what is not finished has every contestant, if in fewer rounds.
    for i, (task_name, task) in itertools.product(range(1, a.rounds + 1), chosen.items()):
        for name in names if i % 2 else reversed(names):
            contestant = CONTESTANTS[name]
            key = {"task": task_name, "contestant": name, "round": i, "settings": task.digest}
            if task_name in contestant.tasks and tuple(key.values()) not in kept:
                records.append(
                    "throughput", {**key, **drive(contestant.library, "ppo", task.to_json(), i, *contestant.variant)}
                )


def report(a: argparse.Namespace) -> None:
    results = records.read("throughput")
    left_out = len(results)
    print("Median and range over rounds; ratios are levelhead's figure divided by that of the row.")
    for task_name, task in tasks(a.steps).items():
        wanted = [r for r in results if (r["task"], r["settings"]) == (task_name, task.digest)]
        left_out -= len(wanted)
        rows = {
            name: {r["round"]: r for r in wanted if r["contestant"] == name}
            for name in CONTESTANTS
            if any(r["contestant"] == name for r in wanted)
        }
        if rows:
            print(f"\n{task_name}: {task.env_id}, {task.num_envs} x {task.num_steps}, ", end="")
            print(f"{task.minibatches} x {task.epochs}, {task.steps:,} steps\n")
            (speed_table if task.goal is None else solve_table)(rows)
    if left_out:
        print(f"\n{left_out} results of other settings are left out.")


def speed_table(rows: Rows) -> None:
    """Every figure with its ratio, within a round."""
    head = [cell for label, _ in FIGURES.values() for cell in (label, "ratio")]
    print("| " + " | ".join(("", "rounds", *head)) + " |\n" + "|---" * (2 + len(head)) + "|")
    for name, by_round in rows.items():
        cells = [name, str(len(by_round))]
        for figure, (_, digits) in FIGURES.items():
            cells += [spread([r[figure] for r in by_round.values()], digits), ratios(rows, name, figure)]
        print("| " + " | ".join(cells) + " |")


def solve_table(rows: Rows) -> None:
    """Seconds and steps over the seeds that solved it; the ratio is one of medians, as seeds have nothing in common."""
    print("| | solved | seconds | steps | ratio of seconds |\n|---|---|---|---|---|")
    solved = {name: [r for r in by_round.values() if r["solved"]] for name, by_round in rows.items()}
    seconds = {name: [r["process_seconds"] for r in runs] for name, runs in solved.items()}
    for name, by_round in rows.items():
        cells = [name, f"{len(solved[name])} of {len(by_round)}"]
        cells += [spread(seconds[name], 1), spread([r["steps"] for r in solved[name]], 0)]
        both = name != OURS and seconds.get(OURS) and seconds[name]
        cells.append(f"{statistics.median(seconds[OURS]) / statistics.median(seconds[name]):.2f}" if both else "")
        print("| " + " | ".join(cells) + " |")


def ratios(rows: Rows, name: str, figure: str) -> str:
    """levelhead's figure divided by a contestant's, in the rounds that have both."""
    ours, theirs = rows.get(OURS, {}), rows[name]
    return "" if name == OURS else spread([ours[i][figure] / theirs[i][figure] for i in ours.keys() & theirs], 2)


def spread(values: list[float], digits: int) -> str:
    """Median and range; nothing of nothing."""
    if not values:
        return ""
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, reports = commands.add_parser("run"), commands.add_parser("report")
    runs.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(TASKS)}; all where not given")
    runs.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), help="all where not given")
    runs.add_argument("--rounds", type=int, default=5)
    for command in (runs, reports):
        command.add_argument("--steps", type=int, help="instead of each task's own")
    a = parser.parse_args()
    if a.command == "report":
        report(a)
    elif unknown := set(a.tasks) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    else:
        run(a)


if __name__ == "__main__":
    main()
