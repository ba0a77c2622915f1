"""Steps per second where environments, policy and learning are all on one device: CartPole in torch, by engine and
precision.

    python benchmarks/gpu.py [--device cuda] [--num-envs 1024 4096 16384] [--iterations 20] [--rounds 3]

An iteration is a rollout of 32 steps and 4 epochs of 4 minibatches, with two layers of 256 for actor and critic each.
The first iterations, in which kernels are chosen and graphs compiled, don't count. Every line is the median over
rounds, which go through all lines in turn; beside it the share of the time in which steps were collected, and the
device's peak memory. On a CPU it shows that everything runs, and no more.
"""

import argparse
import itertools
import statistics

import torch

import levelhead as lh
from levelhead.config import Precision
from levelhead.preparation import prepare
from levelhead.trainer import Trainer

ENGINES = ("torch", "compile")
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16")
WARM_UP = 3
WIDTHS = (256, 256)


def make_trainer(num_envs: int, engine: str, precision: Precision, device: str) -> Trainer:
    config = lh.Config(
        "CartPole-v1",
        num_envs=num_envs,
        num_steps=32,
        total_steps=10**12,
        device=device,
        engine=engine,
        network=lh.NetworkConfig(actor=WIDTHS, critic=WIDTHS, precision=precision),
        ppo=lh.PPOConfig(epochs=4, minibatches=4),
    )
    prepare(config)
    env = lh.TensorCartPole(num_envs, device)
    return lh.build_trainer(config, env, lh.build_policy(config, env.observation_space, env.action_space))


def measure(trainer: Trainer, iterations: int) -> tuple[float, float]:
    """Steps per second, and the share of the time in which they were collected."""
    for _ in range(WARM_UP):
        next(trainer)
    turns = list(itertools.islice(trainer, iterations))
    collecting, learning = (sum(turn.metrics[f"time/{part}"] for turn in turns) for part in ("collect", "learn"))
    return sum(turn.steps for turn in turns) / (collecting + learning), collecting / (collecting + learning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"))
    parser.add_argument("--num-envs", nargs="+", type=int, default=[1024, 4096, 16384])
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    a = parser.parse_args()
    on_gpu = a.device == "cuda"
    precisions = [precision for precision in PRECISIONS if on_gpu or precision != "tf32"]
    lines = list(itertools.product(a.num_envs, ENGINES, precisions))
    found: dict[tuple[int, str, Precision], list[tuple[float, float, float]]] = {line: [] for line in lines}
    for _ in range(a.rounds):
        for num_envs, engine, precision in lines:
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            speed, collecting = measure(make_trainer(num_envs, engine, precision, a.device), a.iterations)
            memory = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else float("nan")
            found[num_envs, engine, precision].append((speed, collecting, memory))
    print(f"{torch.cuda.get_device_name() if on_gpu else 'CPU'}, torch {torch.__version__}\n")
    print("| environments | engine | precision | steps/s | collecting | peak memory, MB |\n|---|---|---|---|---|---|")
    for (num_envs, engine, precision), rounds in found.items():
        speeds, collecting, memory = zip(*rounds, strict=True)
        spread = f"{statistics.median(speeds):,.0f} ({min(speeds):,.0f} to {max(speeds):,.0f})"
        shares = f"{statistics.median(collecting):.0%} | {statistics.median(memory):.0f}"
        print(f"| {num_envs:,} | {engine} | {precision} | {spread} | {shares} |")


if __name__ == "__main__":
    main()
