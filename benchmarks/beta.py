"""Which retention beta to choose: how well statistics follow targets that drift, and what PPO makes of it.

    python benchmarks/beta.py run [--seeds 1 2 3 4 5]
    python benchmarks/beta.py report

`report` first simulates targets whose scale and mean grow tenfold in a given number of updates, seen through batches
of so many independent samples (a rollout of 1024 steps holds far fewer than that, as its returns overlap), and prints
the error of mean and std: the root mean square of `(true mean - mean) / true std` and of `ln(std / true std)` together.
Then it prints the greedy returns of PPO with each beta, which `run` has left in results/beta.jsonl, and draws
docs/beta.png.
"""

import argparse
import itertools
import tempfile
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import records
import torch
from stats import interval, iqm, summary

import levelhead as lh

PLOT = Path(__file__).parents[1] / "docs" / "beta.png"
BETAS = (0.0, 0.9, 0.95, 0.98, 0.99, 0.999)
TENFOLD = (30, 100, 300, 1000, 3000, None)
"""Updates in which scale and mean grow tenfold; None for never."""
SAMPLES = (10, 100)
UPDATES, REPLICAS = 600, 32
TASKS = {"CartPole-v1": 100_000, "Pendulum-v1": 100_000, "Acrobot-v1": 150_000}


def error(beta: float, tenfold: int | None, samples: int) -> float:
    """Root mean square error of mean and log std over the second half of `UPDATES`."""
    torch.manual_seed(0)
    statistics = lh.ValueNormalizer(beta, REPLICAS)
    squares = []
    for t in range(UPDATES):
        scale = 1.0 if tenfold is None else 10 ** (t / tenfold)
        statistics.update(scale * (torch.randn(samples, REPLICAS, dtype=torch.float64) + 2))
        if t >= UPDATES // 2:
            squares.append((2 - statistics.mean / scale).square() + (statistics.std / scale).log().square())
    return float(torch.stack(squares).mean().sqrt())


def run(seeds: list[int]) -> None:
    done = {(r["env"], r["beta"], r["seed"]) for r in records.read("beta")}
    for seed, (env_id, steps), beta in itertools.product(seeds, TASKS.items(), BETAS):
        if (env_id, beta, seed) in done:
            continue
        config = replace(lh.preset(env_id), head=lh.HeadConfig(beta=beta), checkpoint_every=0)
        with tempfile.TemporaryDirectory() as directory:
            trained = lh.train(env_id, config=config, total_steps=steps, seed=seed, run_dir=directory)
        score = lh.evaluate(trained.policy, env_id, 50, seed).mean_return
        records.append("beta", {"env": env_id, "steps": steps, "beta": beta, "seed": seed, "return": score})


def simulate(axis: plt.Axes) -> None:
    for samples in SAMPLES:
        print(f"\nerror of mean and std, batches of {samples} independent samples; the best of each row in bold\n")
        print("| tenfold in | " + " | ".join(f"{beta:g}" for beta in BETAS) + " |\n|---|" + "---|" * len(BETAS))
        for tenfold in TENFOLD:
            errors = [error(beta, tenfold, samples) for beta in BETAS]
            label = "never" if tenfold is None else f"{tenfold} updates"
            cells = [f"**{e:.2f}**" if e == min(errors) else f"{e:.2f}" for e in errors]
            print(f"| {label} | " + " | ".join(cells) + " |")
            if samples == SAMPLES[0]:
                axis.plot([1 - beta for beta in BETAS], errors, marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="1 - beta", ylabel="error of mean and ln std")
    axis.set_title(f"tracking, {SAMPLES[0]} samples per update")
    axis.invert_xaxis()
    axis.legend(title="tenfold in", fontsize="x-small", title_fontsize="x-small", loc="lower left")


def report() -> None:
    results = records.read("beta")
    figure, axes = plt.subplots(1, 1 + len(TASKS), figsize=(3.6 * (1 + len(TASKS)), 3.4), layout="constrained")
    simulate(axes[0])
    print("\nPPO, PopArt head, greedy return: IQM over seeds [95% bootstrap interval]\n")
    print("| environment | seeds | " + " | ".join(f"{b:g}" for b in BETAS) + " |\n|---|---|" + "---|" * len(BETAS))
    for axis, (env_id, steps) in zip(axes[1:], TASKS.items(), strict=True):
        scores = [[r["return"] for r in results if (r["env"], r["beta"]) == (env_id, beta)] for beta in BETAS]
        print(f"| {env_id}, {steps // 1000}k | {len(scores[0])} | " + " | ".join(summary(s) for s in scores) + " |")
        x = [1 - beta for beta in BETAS]
        bounds = [interval(s) for s in scores]
        axis.plot(x, [iqm(s) for s in scores], marker="o")
        axis.fill_between(x, *zip(*bounds, strict=True), alpha=0.2)
        axis.set(xscale="log", xlabel="1 - beta", title=f"{env_id}, {steps // 1000}k steps")
        axis.invert_xaxis()
    axes[1].set_ylabel("greedy return")
    figure.savefig(PLOT, dpi=150)
    print(f"\n{PLOT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run")
    runs.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    commands.add_parser("report")
    a = parser.parse_args()
    if a.command == "run":
        run(a.seeds)
    else:
        report()


if __name__ == "__main__":
    main()
