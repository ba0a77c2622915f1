"""Connect-four by self-play: does a policy that has met nobody but its own past beat others?

    python benchmarks/selfplay.py run [--seeds 1 2 3] [--steps 300000]
    python benchmarks/selfplay.py report

The opponent in every game is one of the last few snapshots of the policy, drawn anew for each game; it chooses among
legal columns by sampling, as the learner does. In between the policy plays greedily against two that it never trains
with: one that moves at random, and one that wins or stops a win in one move. Steps are the learner's own moves.

`run` prints the curve and appends to results/selfplay.jsonl the seeds that are not in there yet; `report` prints the
table.
"""

import argparse
import copy
import time
from collections import deque
from typing import Any

import numpy as np
import records
import torch
from environments import connect_four
from stats import interval, iqm

import levelhead as lh

EVALUATION = {"random": "levelhead/ConnectFour-v0", "greedy": "levelhead/ConnectFourGreedy-v0"}
STEPS = 300_000
EPISODES = 100
EVERY = 20_000
"""Moves between evaluations."""
RENEWAL = 10_000
"""Moves between snapshots."""
POOL = 8


class Past:
    """An opponent for `connect_four` that plays a game as one of a pool of policies.

    Args:
        pool: which may change from game to game.
        generator: of its moves.
    """

    def __init__(self, pool: deque[lh.Policy], generator: torch.Generator) -> None:
        self.pool = pool
        self.generator = generator

    def __call__(self, board: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> int:
        if np.count_nonzero(board) < 2:  # its first move of a game
            self.player = self.pool[rng.integers(len(self.pool))]
        seen = np.stack([board == 1, board == -1], axis=-1).ravel().astype(np.float32)
        return int(self.player.act(seen, mask, sample=True, generator=self.generator))


def config(seed: int, steps: int) -> lh.Config:
    return lh.Config(
        EVALUATION["random"],
        total_steps=steps,
        seed=seed,
        num_envs=16,
        num_steps=128,
        device="cpu",
        network=lh.NetworkConfig(actor=(128, 128), critic=(128, 128)),
        ppo=lh.PPOConfig(minibatches=8, entropy_coef=0.01),
        optimizer=lh.OptimizerConfig(learning_rate=lh.Schedule(1e-3, 0.0)),
    )


def train(seed: int, steps: int) -> dict[str, Any]:
    """The curve of moves and scores, and the seconds for it all, evaluations included."""
    pool: deque[lh.Policy] = deque(maxlen=POOL)
    generator = torch.Generator().manual_seed(seed)
    settings = config(seed, steps)
    env = lh.make_gymnasium(lambda: connect_four(Past(pool, generator)), settings.num_envs)
    policy = lh.build_policy(settings, env.observation_space, env.action_space)
    pool.append(copy.deepcopy(policy))
    curve = [(0, *scores(policy))]
    print(f"seed {seed}\n{'moves':>9} {'random':>7} {'greedy':>7} {'own past':>9}\n{0:>9,} {line(curve[0])}")
    started = time.perf_counter()
    for iteration in lh.build_trainer(settings, env, policy):
        if passed(RENEWAL, iteration):
            pool.append(copy.deepcopy(policy))
        if passed(EVERY, iteration) or iteration.step >= steps:
            curve.append((iteration.step, *scores(policy)))
            own = iteration.metrics["rollout/ep_rew_mean"]
            print(f"{iteration.step:>9,} {line(curve[-1])} {own:>9.2f}", flush=True)
    return {"seed": seed, "steps": steps, "curve": curve, "seconds": round(time.perf_counter() - started, 1)}


def passed(every: int, iteration: lh.Iteration) -> bool:
    """Whether the iteration went past a multiple of so many steps."""
    return iteration.step // every > (iteration.step - iteration.steps) // every


def scores(policy: lh.Policy) -> list[float]:
    """Mean result of greedy games, 1 for a win and -1 for a loss, against each of the two."""
    return [lh.evaluate(policy, env_id, EPISODES, seed=10_000).mean_return for env_id in EVALUATION.values()]


def line(point: tuple[float, ...]) -> str:
    return " ".join(f"{x:>7.2f}" for x in point[1:])


def run(seeds: list[int], steps: int) -> None:
    torch.set_num_threads(1)
    done = {(r["seed"], r["steps"]) for r in records.read("selfplay")}
    for seed in seeds:
        if (seed, steps) not in done:
            records.append("selfplay", train(seed, steps))


def report() -> None:
    results = records.read("selfplay")
    for steps in sorted({r["steps"] for r in results}):
        curves = np.array([r["curve"] for r in results if r["steps"] == steps])
        print(
            f"\nResult of {EPISODES} greedy games against players that training knows nothing of, IQM over"
            f" {len(curves)} seeds [95% bootstrap interval]\n\n| moves | against {' | against '.join(EVALUATION)} |"
            "\n|---|---|---|"
        )
        for point in curves.swapaxes(0, 1):
            cells = [f"{iqm(x):.2f} [{low:.2f}, {high:.2f}]" for x in point.T[1:] for low, high in [interval(x)]]
            print(f"| {point[0, 0]:,.0f} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    runs.add_argument("--steps", type=int, default=STEPS)
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.seeds, a.steps)
    else:
        report()


if __name__ == "__main__":
    main()
