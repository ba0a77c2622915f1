"""The details of PPO that are said to matter, each taken out or put in by itself: does it?

    python benchmarks/ablation.py run [CartPole-v1 ...] [--variants "value clip" ...] [--seeds 1 2 3]
    python benchmarks/ablation.py report

`run` appends to results/ablation.jsonl whatever is not in there yet; `report` prints a table. The preset of each
environment is what a variant departs from, in one thing alone; nothing is tuned for a variant. Returns are greedy, and
of the environment as it is, whatever was trained on.
"""

import argparse
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import records
from scale_task import EPISODES, greedy_return
from stats import interval, summary
from torch import nn

import levelhead as lh
from levelhead.builders import build_action_head, build_network
from levelhead.networks import ObservationReader
from levelhead.schedules import constant


class EndsAtTheLimit(gym.Wrapper[Any, Any, Any, Any]):
    """Tells of a time limit as if the episode had come to its end."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, False, info


def ends_at_the_limit(env_id: str) -> gym.Env[Any, Any]:
    return EndsAtTheLimit(gym.make(env_id))


def time_limits_as_ends(config: lh.Config) -> dict[str, Any]:
    return {"env": partial(ends_at_the_limit, config.env_id), "config": config}


def initialized_by_torch(config: lh.Config) -> dict[str, Any]:
    """Actor and critic start as PyTorch's layers do; the value head starts at 0 as ever."""
    with gym.make(config.env_id) as env:
        network = build_network(config, ObservationReader(env.observation_space, normalize=False).shapes)
        head = build_action_head(config, network.actor_dim, env.action_space)
    for layer in (*network.modules(), head.linear):
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return {"env": config.env_id, "config": config, "network": network, "action_head": head}


def with_ppo(**changes: Any) -> "Variant":
    return lambda config: {"env": config.env_id, "config": replace(config, ppo=replace(config.ppo, **changes))}


def with_optimizer(**changes: Any) -> "Variant":
    def variant(config: lh.Config) -> dict[str, Any]:
        return {"env": config.env_id, "config": replace(config, optimizer=replace(config.optimizer, **changes))}

    return variant


def constant_learning_rate(config: lh.Config) -> dict[str, Any]:
    return with_optimizer(learning_rate=constant(config.optimizer.learning_rate.start))(config)


def layered(config: lh.Config) -> dict[str, Any]:
    its = lh.preset(config.env_id, kind="layered")
    return {"env": config.env_id, "config": replace(config, network=its.network, optimizer=its.optimizer)}


def auxiliary_phase(config: lh.Config) -> dict[str, Any]:
    return {"env": config.env_id, "config": replace(config, auxiliary=lh.AuxiliaryConfig(every=8))}


Variant = Callable[[lh.Config], dict[str, Any]]
"""From a preset to what `lh.train` is told."""
PRESET = "preset"
VARIANTS: dict[str, Variant] = {
    PRESET: lambda config: {"env": config.env_id, "config": config},
    "advantages standardised by minibatch": with_ppo(advantage="minibatch"),
    "advantages divided by the head's std": with_ppo(advantage="head"),
    "value clip of 0.2": with_ppo(value_clip=constant(0.2)),
    "constant learning rate": constant_learning_rate,
    "Adam's eps 1e-8": with_optimizer(eps=1e-8),
    "rates for actor and critic: 3e-4 and 1e-3": with_optimizer(
        actor=lh.GroupConfig(constant(3e-4), eps=1e-8), critic=lh.GroupConfig(constant(1e-3), eps=1e-5)
    ),
    "preset layered": layered,
    "PyTorch's initial weights": initialized_by_torch,
    "time limits as ends": time_limits_as_ends,
    "auxiliary phase every 8 iterations": auxiliary_phase,
}


@dataclass(frozen=True)
class Part:
    """What is run on one environment."""

    steps: int
    seeds: tuple[int, ...]


GRID = {
    "CartPole-v1": Part(100_000, (1, 2, 3, 4, 5)),
    "Pendulum-v1": Part(200_000, (1, 2, 3, 4, 5)),
    "HalfCheetah-v5": Part(300_000, (1, 2, 3)),
    "Hopper-v5": Part(300_000, (1, 2, 3)),
}


def once(env_id: str, steps: int, variant: str, seed: int) -> float:
    """One run's return."""
    config = replace(lh.preset(env_id), total_steps=steps, seed=seed, checkpoint_every=0, device="cpu")
    with tempfile.TemporaryDirectory() as directory:
        run = lh.train(**VARIANTS[variant](config), run_dir=directory)
    if run.interrupted:
        raise SystemExit("interrupted")
    return greedy_return(env_id, run.policy.act)


def run(env_ids: list[str], variants: list[str], seeds: list[int], steps: int) -> None:
    done = {(r["env"], r["variant"], r["seed"], r["steps"]) for r in records.read("ablation")}
    jobs = [
        (seed, env_id, variant)
        for env_id in env_ids or GRID
        for seed, variant in itertools.product(seeds or GRID[env_id].seeds, variants or VARIANTS)
    ]
    # Seeds outermost: what is not finished has every variant, if with fewer seeds.
    for seed, env_id, variant in sorted(jobs, key=lambda job: job[0]):
        count = steps or GRID[env_id].steps
        if (env_id, variant, seed, count) in done:
            continue
        started = time.perf_counter()
        score = once(env_id, count, variant, seed)
        seconds = round(time.perf_counter() - started, 1)
        key = {"env": env_id, "variant": variant, "seed": seed, "steps": count}
        records.append("ablation", {**key, "return": score, "seconds": seconds})


def report() -> None:
    scores: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for r in records.read("ablation"):
        if r["steps"] == GRID[r["env"]].steps:
            scores[r["env"]][r["variant"]][r["seed"]] = r["return"]
    print(
        f"Greedy return over {EPISODES} episodes, IQM over seeds [95% bootstrap interval]; in bold where the interval"
        " lies apart from the preset's."
    )
    for env_id, part in GRID.items():
        print(f"\n{env_id}, {part.steps:,} steps\n\n| | seeds | return |\n|---|---|---|")
        preset = interval(list(scores[env_id][PRESET].values()) or [np.nan])
        for variant in VARIANTS:
            if returns := list(scores[env_id][variant].values()):
                low, high = interval(returns)
                apart = high < preset[0] or low > preset[1]
                shown = f"**{summary(returns)}**" if apart else summary(returns)
                print(f"| {variant} | {len(returns)} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("env_ids", nargs="*", metavar="ENV_ID", help=f"of {', '.join(GRID)}; all where not given")
    runs.add_argument("--variants", nargs="+", default=[], choices=VARIANTS)
    runs.add_argument("--seeds", nargs="+", type=int, default=[])
    runs.add_argument("--steps", type=int, default=0, help="20,000 or more, for a try; not in the report")
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.env_ids, a.variants, a.seeds, a.steps)
    else:
        report()


if __name__ == "__main__":
    main()
