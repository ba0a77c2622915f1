"""Does each part of the agent earn its keep? Learning with it and, everything else the same, without it.

    python benchmarks/agents.py run                                                # all, or what is left of it
    python benchmarks/agents.py run hidden-velocities battleship --variants lstm autoregressive --seeds 1 2
    python benchmarks/agents.py report

`run` appends to results/agents.jsonl whatever is not in there yet; `report` prints a table per experiment and draws
docs/agents.png. Variants differ in one part alone; settings are chosen once, for all variants of an experiment, and not
searched for. environments.py says what the environments are and which packages they need.
"""

import argparse
import hashlib
import itertools
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import environments  # noqa: F401  registers them
import matplotlib.pyplot as plt
import numpy as np
import records
from stats import interval, iqm

import levelhead as lh
from levelhead.serialize import to_json

PLOT = Path(__file__).parents[1] / "docs" / "agents.png"
EPISODES = 50
EVALUATION_SEED = 10_000
ALSO = {f"levelhead/{name}-v0": f"levelhead/{name}Greedy-v0" for name in ("ConnectFour", "ConnectFourUnmasked")}
"""Where a policy is scored besides its own environment: against the opponent that wins or stops a win in one move."""


@dataclass(frozen=True)
class Experiment:
    """A part, and what the agent is without it."""

    config: lh.Config
    """Shared by all variants; environment and total steps are in it."""
    variants: dict[str, dict[str, Any]]
    """By name, the fields of `config` that differ."""
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)

    def config_of(self, variant: str, seed: int) -> lh.Config:
        return replace(self.config, seed=seed, **self.variants[variant])


def annealed(**ppo: Any) -> dict[str, Any]:
    """Step sizes from 1e-3 to 0; no checkpoint, and no new episodes with it, but at the end."""
    return {
        "optimizer": lh.OptimizerConfig(learning_rate=lh.Schedule(1e-3, 0.0)),
        "ppo": lh.PPOConfig(**ppo),
        "checkpoint_every": 0,
    }


def memories(size: int) -> dict[str, dict[str, Any]]:
    return {
        "lstm": {"memory": lh.MemoryConfig("lstm", size)},
        "gru": {"memory": lh.MemoryConfig("gru", size)},
        "none": {},
    }


def recurrent(env_id: str) -> lh.Config:
    return lh.Config(env_id, 500_000, num_envs=16, num_steps=128, **annealed(entropy_coef=0.01))


def gated(*parts: str) -> lh.ActionConfig:
    """The part that belongs to choice 0, that of choice 1 and so on matter when action 0 is that."""
    gates = {part: {"0": [i]} for i, part in enumerate(parts)}
    return lh.ActionConfig(bounds="rescale", gates=gates)


UNGATED = lh.ActionConfig(bounds="rescale")

EXPERIMENTS = {
    "hidden-velocities": Experiment(
        lh.Config("levelhead/HiddenVelocityCartPole-v0", 500_000, num_envs=8, num_steps=128, **annealed()),
        memories(64),
    ),
    "hybrid-toy": Experiment(
        lh.Config("levelhead/HybridToy-v0", 60_000, num_envs=8, num_steps=128, **annealed(minibatches=8)),
        {
            "gated": {"action": gated("1", "2", "3")},
            "ungated": {"action": UNGATED},
            # Scores may take any value, so that two at a bound are no tie; the parameters' bounds are -1 and 1 already.
            "real numbers alone": {"env_id": "levelhead/HybridToyBox-v0"},
        },
    ),
    "platform": Experiment(
        lh.Config("levelhead/Platform-v0", 60_000, num_envs=8, num_steps=128, **annealed(minibatches=8)),
        {"gated": {"action": gated("1/0", "1/1", "1/2")}, "ungated": {"action": UNGATED}},
        seeds=(1, 2, 3),
    ),
    "battleship": Experiment(
        replace(recurrent("levelhead/BattleshipPair-v0"), memory=lh.MemoryConfig("lstm", 128)),
        {"independent": {}, "autoregressive": {"action": lh.ActionConfig(sees={"1": ["0"]})}},
    ),
    "connect-four": Experiment(
        lh.Config(
            "levelhead/ConnectFour-v0",
            200_000,
            num_envs=16,
            num_steps=128,
            network=lh.NetworkConfig(actor=(128, 128), critic=(128, 128)),
            **annealed(minibatches=8, entropy_coef=0.01),
        ),
        {"masks": {}, "no masks": {"env_id": "levelhead/ConnectFourUnmasked-v0"}},
    ),
    "repeat-previous": Experiment(recurrent("levelhead/RepeatPrevious-v0"), memories(128), seeds=(1, 2, 3)),
    "count-recall": Experiment(recurrent("levelhead/CountRecall-v0"), memories(128), seeds=(1, 2, 3)),
    "minigrid-memory": Experiment(recurrent("levelhead/MiniGridMemory-v0"), memories(128), seeds=(1, 2, 3)),
    "mountain-car": Experiment(
        lh.Config(
            "MountainCarContinuous-v0",
            100_000,
            num_envs=8,
            num_steps=256,
            checkpoint_every=0,
            network=lh.NetworkConfig(normalize_observation=True),
            ppo=lh.PPOConfig(minibatches=8),
            optimizer=lh.OptimizerConfig(learning_rate=1e-3),
        ),
        {f"color {color}": {"action": lh.ActionConfig(color=color)} for color in (0, 1, 2)},
    ),
}


def digest(config: lh.Config) -> str:
    """Tells settings apart in a few letters: by all in which they depart from the library's defaults but the seed."""

    def beyond(given: Any, plain: Any) -> Any:
        if not (isinstance(given, dict) and isinstance(plain, dict)):
            return given
        return {key: beyond(x, plain.get(key)) for key, x in given.items() if x != plain.get(key)}

    departures = beyond(to_json(replace(config, seed=lh.Config.seed)), to_json(lh.Config(config.env_id)))
    return hashlib.sha256(json.dumps(departures, sort_keys=True).encode() + config.env_id.encode()).hexdigest()[:8]


def train(config: lh.Config) -> dict[str, Any]:
    """Trains and scores; seconds and steps per second are those of collecting and learning.

    `training_return` is that of the last 100 episodes, whose actions were drawn from the policy.
    """
    with tempfile.TemporaryDirectory() as directory:
        run = lh.train(config.env_id, config=config, run_dir=directory)
        lines = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    if run.interrupted:
        raise SystemExit("interrupted")

    def score(env_id: str) -> float:
        return lh.evaluate(run.policy, env_id, EPISODES, EVALUATION_SEED).mean_return

    seconds = sum(line["time/collect"] + line["time/learn"] for line in lines)
    also = {"against greedy": score(ALSO[config.env_id])} if config.env_id in ALSO else {}
    return {
        "return": score(config.env_id),
        "also": also,
        "training_return": lines[-1].get("rollout/ep_rew_mean"),
        "seconds": round(seconds, 1),
        "steps_per_second": round(run.step / seconds),
    }


def run(a: argparse.Namespace) -> None:
    chosen = {name: EXPERIMENTS[name] for name in a.experiments or EXPERIMENTS}
    if a.steps:
        chosen = {name: replace(x, config=replace(x.config, total_steps=a.steps)) for name, x in chosen.items()}
    done = {(r["experiment"], r["variant"], r["seed"], r["settings"]) for r in records.read("agents")}
    jobs = [
        (seed, name, variant)
        for name, x in chosen.items()
        for seed, variant in itertools.product(a.seeds or x.seeds, x.variants)
        if variant in (a.variants or x.variants)
    ]
    # Seeds outermost: what is not finished has every variant, if with fewer seeds.
    for seed, name, variant in sorted(jobs, key=lambda job: job[0]):
        config = chosen[name].config_of(variant, seed)
        key = {"experiment": name, "variant": variant, "seed": seed, "settings": digest(config)}
        if tuple(key.values()) not in done:
            records.append("agents", {**key, "steps": config.total_steps, **train(config)})


def shown(x: float, scores: list[float]) -> str:
    """Two digits after the point where returns are small."""
    return f"{x:.{2 if max(map(abs, scores)) < 20 else 1}f}"


def report() -> None:
    results = records.read("agents")
    print(
        f"Greedy return over {EPISODES} episodes, IQM over seeds [95% bootstrap interval]; median of the steps per"
        " second of training, learning included."
    )
    panels: dict[str, dict[str, list[dict[str, Any]]]] = {}
    left_out = len(results)
    for name, x in EXPERIMENTS.items():
        for variant in x.variants:
            settings = digest(x.config_of(variant, 1))
            wanted = (name, variant, settings)
            rows = [r for r in results if (r["experiment"], r["variant"], r["settings"]) == wanted]
            left_out -= len(rows)
            if rows:
                panels.setdefault(name, {})[variant] = rows
    for name, by_variant in panels.items():
        table(name, by_variant)
    if left_out:
        print(f"\n{left_out} results of other settings are left out.")
    if panels:
        draw(panels)


def table(name: str, by_variant: dict[str, list[dict[str, Any]]]) -> None:
    config = EXPERIMENTS[name].config
    also = sorted({label for rows in by_variant.values() for r in rows for label in r["also"]})
    print(f"\n{name}: {config.env_id}, {config.total_steps:,} steps\n")
    print("| " + " | ".join(("variant", "seeds", "return", *also, "steps/s")) + " |\n" + "|---" * (4 + len(also)) + "|")
    for variant, rows in by_variant.items():
        cells = [variant, str(len(rows))]
        for scores in ([r["return"] for r in rows], *([r["also"][label] for r in rows] for label in also)):
            low, high = interval(scores)
            cells.append(f"{shown(iqm(scores), scores)} [{shown(low, scores)}, {shown(high, scores)}]")
        print("| " + " | ".join((*cells, f"{np.median([r['steps_per_second'] for r in rows]):,.0f}")) + " |")


def draw(panels: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """A panel per experiment: IQM and interval of each variant, its seeds as dots; a second score below the first."""
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 1.9 * rows), layout="constrained", squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (name, by_variant) in zip(axes.flat, panels.items(), strict=False):
        for row, results in enumerate(by_variant.values()):
            point(axis, row, [r["return"] for r in results], "tab:blue")
            if results[0]["also"]:
                point(axis, row + 0.3, [x for r in results for x in r["also"].values()], "tab:orange")
                axis.set_xlabel("return; orange: against greedy", fontsize=8)
        axis.set(title=f"{name}, {EXPERIMENTS[name].config.total_steps // 1000}k steps", yticks=range(len(by_variant)))
        axis.set_yticklabels(by_variant)
        axis.set_ylim(len(by_variant) - 0.5, -0.5)
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def point(axis: Any, row: float, scores: list[float], color: str) -> None:
    axis.plot(interval(scores), (row, row), color=color, linewidth=5, alpha=0.4)
    axis.plot(scores, [row] * len(scores), "|", color=color, ms=7, alpha=0.6)
    axis.plot(iqm(scores), row, "o", color=color)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="what is given here replaces what the experiments hold")
    runs.add_argument("experiments", nargs="*", metavar="experiment", help=f"of {', '.join(EXPERIMENTS)}")
    runs.add_argument("--variants", nargs="+", help="those of the experiments; all where not given")
    runs.add_argument("--seeds", nargs="+", type=int)
    runs.add_argument("--steps", type=int)
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "report":
        report()
        return
    if unknown := set(a.experiments) - set(EXPERIMENTS):
        parser.error(f"no experiment {', '.join(sorted(unknown))}; there are {', '.join(EXPERIMENTS)}")
    known = {variant for name in a.experiments or EXPERIMENTS for variant in EXPERIMENTS[name].variants}
    if unknown := set(a.variants or ()) - known:
        parser.error(f"no variant {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    run(a)


if __name__ == "__main__":
    main()
