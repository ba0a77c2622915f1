"""PPO at reward scales from 1e-6 to 1e6: every value head of levelhead, Stable-Baselines3 and CleanRL.

    python benchmarks/reward_scale.py run                                        # the whole grid, or what is left of it
    python benchmarks/reward_scale.py run CartPole-v1 --libraries levelhead/popart sb3-matched --scales 1 --seeds 1
    python benchmarks/reward_scale.py report

`run` appends to results/reward_scale.jsonl whatever is not in there yet; `report` prints the tables and draws
docs/reward_scale.png from it.

All run levelhead's preset for the environment: the same environments, steps, epochs, minibatches, schedules, discounts,
networks, coefficients and Adam, and none clips the value loss. What differs besides the treatment of scale:

- levelhead clips the gradients of actor and critic each by its own norm, the others by their common norm;
- levelhead standardises advantages over the rollout, the others over the minibatch;
- levelhead's last critic layer starts at zero, the others' are random, so that they begin with values around 1;
- levelhead and SB3 tell time limits from real ends, CleanRL doesn't; see drivers/cleanrl_scale.py for its edits.

`sb3` alone runs SB3's own defaults: compare along its line, not between lines. Libraries: `sb3-matched` leaves rewards
as they are, `sb3-vecnormalize` has what SB3's users do about scale, VecNormalize(norm_reward=True, norm_obs=False), and
`cleanrl` is its single file as shipped: nothing about scale for discrete actions, for continuous ones normalised and
clipped rewards and observations.
"""

import argparse
import functools
import itertools
import math
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import matplotlib.pyplot as plt
import numpy as np
import records
from peers import drive
from scale_task import EPISODES, ScaleTask
from stats import interval, iqm

import levelhead as lh
from levelhead.config import ValueKind
from levelhead.schedules import Schedule

PLOT = Path(__file__).parents[1] / "docs" / "reward_scale.png"
HEADS = [f"levelhead/{name}" for name in get_args(ValueKind)]
PEERS = {
    "sb3-matched": ("sb3", "matched"),
    "sb3-vecnormalize": ("sb3", "vecnormalize"),
    "cleanrl": ("cleanrl", "as-shipped"),
    "sb3": ("sb3", "defaults"),
}
LIBRARIES = [*HEADS, *PEERS]
LABELS = {
    "levelhead": "levelhead, presets",
    "sb3-matched": "Stable-Baselines3",
    "sb3-vecnormalize": "Stable-Baselines3, VecNormalize",
    "cleanrl": "CleanRL",
    "sb3": "Stable-Baselines3, its own defaults",
}


@dataclass(frozen=True)
class Part:
    """What the grid holds of one environment."""

    steps: int
    scales: tuple[float, ...] = (1e-6, 1e-3, 1.0, 1e3, 1e6)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    libraries: tuple[str, ...] = (*HEADS, "sb3-matched", "sb3-vecnormalize", "cleanrl")


GRID = {
    "CartPole-v1": Part(75_000),
    "Acrobot-v1": Part(50_000),
    "Pendulum-v1": Part(100_000),
    "LunarLander-v3": Part(
        300_000, (1e-4, 1.0, 1e4), (1, 2, 3), ("levelhead/popart", "levelhead/linear", "sb3-matched")
    ),
}


def task_of(c: lh.Config, steps: int) -> ScaleTask:
    """A preset, for everybody; `steps` rounded up to whole rollouts, as levelhead does."""
    rollout = c.num_envs * c.num_steps
    task = ScaleTask(
        env_id=c.env_id,
        steps=-(-steps // rollout) * rollout,
        num_envs=c.num_envs,
        num_steps=c.num_steps,
        epochs=c.ppo.epochs,
        minibatches=c.ppo.minibatches,
        learning_rate=_ends(c.optimizer.learning_rate),
        entropy_coef=_ends(c.ppo.entropy_coef),
        value_coef=c.ppo.value_coef(0.0),
        gamma=c.ppo.gamma,
        lam=c.ppo.lam,
        clip_range=c.ppo.clip_range(0.0),
        max_grad_norm=c.optimizer.max_grad_norm,
        adam_eps=c.optimizer.eps,
        hidden=c.network.actor,
        log_std=math.log(c.action.std(0.0)),
        normalize_observation=c.network.normalize_observation,
    )
    constant = c.ppo.value_coef.shape == c.ppo.clip_range.shape == "constant"
    plain = (c.network.shared, c.network.critic, c.network.activation) == ((), c.network.actor, "tanh")
    groups = (c.optimizer.shared, c.optimizer.actor, c.optimizer.critic)
    same = all(group == type(group)() for group in groups)
    if not (constant and plain and same and c.ppo.value_clip is None and c.ppo.advantage == "rollout"):
        raise SystemExit(f"the preset of {c.env_id} has more to it than the other libraries are told")
    return task


def _ends(coefficient: Schedule) -> tuple[float, float]:
    if coefficient.shape not in ("constant", "linear"):
        raise SystemExit(f"the other libraries know no schedule {coefficient}")
    return coefficient.start, coefficient.end


def run(a: argparse.Namespace) -> None:
    given = {name: getattr(a, name) for name in ("steps", "scales", "seeds", "libraries") if getattr(a, name)}
    parts = {env_id: replace(GRID[env_id], **given) for env_id in a.env_ids or GRID}
    tasks = {env_id: task_of(lh.preset(env_id), part.steps) for env_id, part in parts.items()}
    kept = [r for r in records.read("reward_scale") if r["env"] in parts and r["steps"] == parts[r["env"]].steps]
    for r in kept:
        task = tasks[r["env"]]
        if r.get("task", task.digest) != task.digest:
            raise SystemExit(f"the preset of {task.env_id} is not what {r['library']} ran with; take other --steps")
    done = {(r["seed"], r["env"], r["scale"], r["library"]) for r in kept}
    jobs = [
        (seed, env_id, scale, library)
        for env_id, part in parts.items()
        for seed, scale, library in itertools.product(part.seeds, part.scales, part.libraries)
    ]
    # Seeds outermost: a grid that is not finished has every cell, if with fewer seeds.
    for seed, env_id, scale, library in sorted(jobs, key=lambda job: job[0]):
        if (seed, env_id, scale, library) in done:
            continue
        task, started = tasks[env_id], time.perf_counter()
        peer, treatment = PEERS.get(library) or library.split("/")
        result = drive(peer, "scale", task.to_json(), scale, seed, treatment)
        records.append(
            "reward_scale",
            {
                "library": library,
                "env": env_id,
                "steps": parts[env_id].steps,
                "scale": scale,
                "seed": seed,
                "task": task.digest,
                **result,
                "seconds": round(time.perf_counter() - started, 1),
            },
        )


Scores = dict[str, dict[float, list[float | None]]]
"""By library, scale and seed; None where training broke down."""


def report() -> None:
    tables: dict[tuple[str, int], Scores] = defaultdict(lambda: defaultdict(dict))
    for r in records.read("reward_scale"):
        tables[r["env"], r["steps"]][r["library"]].setdefault(r["scale"], []).append(r["return"])
    print(
        f"Greedy return over {EPISODES} episodes (20 in those of 2026-11-20), IQM over seeds [95% bootstrap interval]."
        " Runs that broke down, their networks NaN, count as the worst return of the table."
    )
    for (env_id, steps), scores in tables.items():
        table(env_id, steps, scores)
    shown = {env_id: tables[env_id, part.steps] for env_id, part in GRID.items() if (env_id, part.steps) in tables}
    if shown:
        draw(shown)


def filled(scores: Scores) -> dict[str, dict[float, list[float]]]:
    """In the order of `LIBRARIES`, and with the worst return where training broke down."""
    worst = min(x for by_scale in scores.values() for xs in by_scale.values() for x in xs if x is not None)
    order = sorted(scores, key=lambda library: [*LIBRARIES, library].index(library))
    return {
        library: {s: [worst if x is None else x for x in xs] for s, xs in sorted(scores[library].items())}
        for library in order
    }


@functools.cache
def estimate(scores: tuple[float, ...]) -> tuple[float, float, float]:
    """IQM and the ends of its bootstrap interval."""
    return iqm(scores), *interval(scores)


def table(env_id: str, steps: int, scores: Scores) -> None:
    scales = sorted({scale for by_scale in scores.values() for scale in by_scale})
    print(f"\n{env_id}, {steps:,} steps\n\n| | " + " | ".join(f"{s:g}" for s in scales) + " |")
    print("|---|" + "---|" * len(scales))
    for library, by_scale in filled(scores).items():
        cells = [""] * len(scales)
        for i, scale in enumerate(scales):
            if scale in by_scale:
                broken = scores[library][scale].count(None)
                middle, low, high = estimate(tuple(by_scale[scale]))
                count = f"n={len(by_scale[scale])}" + f", {broken} NaN" * bool(broken)
                cells[i] = f"{middle:.1f} [{low:.1f}, {high:.1f}] {count}"
        print(f"| {LABELS.get(library, library)} | " + " | ".join(cells) + " |")


def draw(shown: dict[str, Scores]) -> None:
    """One panel per environment; libraries side by side at each scale, PopArt in front."""
    libraries = [x for x in LIBRARIES if any(x in scores for scores in shown.values())]
    shift = dict(zip(libraries, np.linspace(-0.7, 0.7, len(libraries)), strict=True))
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown) + 2.6, 3.6), layout="constrained", squeeze=False)
    for axis, (env_id, scores) in zip(axes[0], shown.items(), strict=True):
        for library, by_scale in filled(scores).items():
            x = np.array(list(by_scale))
            middle, low, high = np.array([estimate(tuple(xs)) for xs in by_scale.values()]).T
            axis.errorbar(
                x * 10 ** shift[library],
                middle,
                yerr=np.maximum((middle - low, high - middle), 0.0),  # a percentile interval may miss its middle
                label=LABELS.get(library, library),
                **style(library),
            )
        axis.set(xscale="log", title=f"{env_id}, {GRID[env_id].steps // 1000}k steps", xlabel="rewards times")
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel(f"greedy return, {EPISODES} episodes")
    entries = {
        label: handle for axis in axes[0] for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(entries.values(), entries, loc="outside right upper", frameon=False)
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def style(library: str) -> dict[str, Any]:
    """PopArt bold, the other heads cold and thin, the peers warm and dashed."""
    if library == "levelhead/popart":
        return {"color": "#0b3d91", "lw": 2.8, "marker": "o", "ms": 6, "zorder": 10}
    muted = {"lw": 1.1, "ms": 4, "elinewidth": 0.8, "alpha": 0.85}
    if library in PEERS:
        i = list(PEERS).index(library)
        return {**muted, "color": ("#d62728", "#ff9f1c", "#9c6644", "#e377c2")[i], "marker": "DXPs"[i], "ls": "--"}
    i = HEADS.index(library)
    cold = ("#0b3d91", "#3fa7d6", "#59a14f", "#7f7f7f", "#8e6bbf", "#2a9d8f", "#a3b18a", "#5c677d")
    return {**muted, "color": cold[i % len(cold)], "marker": "ov^s<>dh"[i % 8]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="what is given here replaces what the grid holds")
    runs.add_argument("env_ids", nargs="*", metavar="env_id", help=f"of {', '.join(GRID)}; all where not given")
    runs.add_argument("--steps", type=int)
    runs.add_argument("--libraries", nargs="+", choices=LIBRARIES)
    runs.add_argument("--scales", nargs="+", type=float)
    runs.add_argument("--seeds", nargs="+", type=int)
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        if unknown := set(a.env_ids) - set(GRID):
            parser.error(f"the grid doesn't hold {', '.join(unknown)}")
        run(a)
    else:
        report()


if __name__ == "__main__":
    main()
