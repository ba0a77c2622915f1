"""The experiments behind docs/value-scale.md: each prints its table, and docs/value_scale.png has their curves.

    python benchmarks/value_scale.py

Targets that drift over a run of PPO; a head far off the normalised axis, with and without learning; what an epsilon and
a clamp cost; and statistics moved once per rollout, or with every minibatch before or after the step.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import levelhead as lh

PLOT = Path(__file__).parents[1] / "docs" / "value_scale.png"
SEEDS = range(5)


# -- targets drift -----------------------------------------------------------------------------------------------


def drift(axis: plt.Axes, env_id: str = "CartPole-v1", steps: int = 100_000) -> None:
    """Mean and std of the targets of each rollout, and the head's."""
    config = lh.Config(env_id, total_steps=steps, value="popart")
    env = lh.make_gymnasium(env_id, config.num_envs)
    policy = lh.build_policy(config, env.observation_space, env.action_space)
    rows = [(it.step, it.metrics) for it in lh.build_trainer(config, env, policy)]
    env.close()
    step = [s for s, _ in rows]
    for label, mean, std in (
        ("targets of a rollout", "value/target_mean", "value/target_std"),
        ("the head's statistics", "value/mean", "value/std"),
    ):
        m, s = (np.array([metrics[name] for _, metrics in rows]) for name in (mean, std))
        (line,) = axis.plot(step, m, label=label)
        axis.fill_between(step, m - s, m + s, alpha=0.2, color=line.get_color())
        cells = [f"{m[i]:.1f} +- {s[i]:.1f}" for i in (0, len(m) // 4, -1)]
        print(f"| {label} | " + " | ".join(cells) + " |")
    axis.set(title=f"{env_id}: targets drift", xlabel="steps", ylabel="mean and std")
    axis.legend(fontsize="small")


# -- a head far off ----------------------------------------------------------------------------------------------


def far_off(axis: plt.Axes, updates: int = 300) -> None:
    """The normalised output of a head whose bias is 100, whether it learns or not; targets are 50 +- 10."""
    for learns in (False, True):
        torch.manual_seed(0)
        head = lh.PopArtValueHead(4)
        nn.init.constant_(head.linear.bias, 100.0)
        optimizer = torch.optim.SGD(head.parameters(), 0.02)
        head.track(optimizer)
        output = []
        for _ in range(updates):
            x, targets = torch.randn(64, 4), 50 + 10 * torch.randn(64)
            head.update(targets)
            output.append(float(head.forward_normalized(x).mean().detach()))
            if learns:
                optimizer.zero_grad()
                head.loss(x, targets).mean().backward()
                optimizer.step()
        label = "update and loss" if learns else "update alone"
        axis.plot(output, label=label)
        print(f"| {label} | {output[0]:.2f} | {output[10]:.2f} | {output[100]:.2f} | {output[-1]:.2f} |")
    axis.set(title="a head whose bias is 100", xlabel="updates", ylabel="normalised output")
    axis.legend(fontsize="small")


# -- epsilon and clamp -------------------------------------------------------------------------------------------


def floors(axis: plt.Axes) -> None:
    """Std of normalised targets, which should be 1, over the scale of the targets."""
    scales = [10.0**e for e in range(-6, 7, 2)]
    torch.manual_seed(0)
    y = torch.randn(4096, dtype=torch.float64)

    def with_epsilon(epsilon: float) -> Callable[[Tensor], Tensor]:
        def normalize(targets: Tensor) -> Tensor:
            statistics = lh.ValueNormalizer(0.0, epsilon=epsilon)
            statistics.update(targets)
            return statistics.normalize(targets)

        return normalize

    def clamped(targets: Tensor) -> Tensor:
        return (targets - targets.mean()) / targets.std(correction=0).clamp(1e-4, 1e6)

    kinds = {
        "as it is": with_epsilon(0.0),
        "variance + 1e-5": with_epsilon(1e-5),
        "variance + 1e-2": with_epsilon(1e-2),
        "std clamped to [1e-4, 1e6]": clamped,
    }
    for label, normalize in kinds.items():
        spreads = [float(normalize(scale * y).std(correction=0)) for scale in scales]
        axis.plot(scales, spreads, marker="o", label=label)
        print(f"| {label} | " + " | ".join(f"{s:.2g}" for s in spreads) + " |")
    axis.set(xscale="log", yscale="log", title="epsilons and clamps", xlabel="std of the targets")
    axis.set_ylabel("std of normalised targets")
    axis.legend(fontsize="small")


# -- when to update ----------------------------------------------------------------------------------------------

WHEN = ("once per rollout", "per minibatch, before the step", "per minibatch, after the step", "never")
ROLLOUTS, ROWS, EPOCHS, MINIBATCHES = 150, 256, 4, 4


def follow(when: str, beta: float, seed: int) -> tuple[list[float], float]:
    """Regression on targets that grow tenfold in 50 rollouts.

    Returns the relative error on each new rollout, and the largest jump of an output, in stds, by statistics alone.
    """
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
    head = lh.PopArtValueHead(64, beta=beta)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], 1e-3)
    head.track(optimizer)
    errors = []
    for t in range(ROLLOUTS):
        scale = 10 ** (t / 50)
        x = torch.randn(ROWS, 4)
        targets = scale * (x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 3)
        with torch.no_grad():
            errors.append(float((head(trunk(x)).squeeze(-1) - targets).square().mean().sqrt() / scale))
        if when == "once per rollout" or (when == "never" and t == 0):
            head.observe(targets)
        for _ in range(EPOCHS):
            for rows in torch.randperm(ROWS).chunk(MINIBATCHES):
                if when == "per minibatch, before the step":
                    head.observe(targets[rows])
                optimizer.zero_grad()
                head.loss(trunk(x[rows]), targets[rows]).mean().backward()
                optimizer.step()
                if when == "per minibatch, after the step":
                    head.observe(targets[rows])
    return errors, float(head.count)


def timing(axis: plt.Axes) -> None:
    """Error of a critic whose targets grow, by when statistics move."""
    for beta in (0.9, 0.9 ** (1 / (EPOCHS * MINIBATCHES))):
        for when in WHEN:
            if when == "once per rollout" and beta > 0.9:
                continue
            if when == "never" and beta > 0.9:
                continue
            runs = [follow(when, beta, seed)[0] for seed in SEEDS]
            curve = np.median(np.array(runs), axis=0)
            label = f"{when}, beta {beta:.3g}"
            axis.plot(curve, label=label)
            early, late = curve[5:50].mean(), curve[100:].mean()
            print(f"| {label} | {early:.3f} | {late:.3f} |")
    axis.set(yscale="log", title="when statistics move", xlabel="rollouts", ylabel="error on a new rollout / scale")
    axis.legend(fontsize="x-small")


def main() -> None:
    torch.set_num_threads(1)
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    print("| mean +- std | first | after a quarter | last |\n|---|---|---|---|")
    drift(axes[0])
    print("\n| normalised output after | 1 | 11 | 101 | 300 updates |\n|---|---|---|---|---|")
    far_off(axes[1])
    print("\n| std of normalised targets at scale | " + " | ".join(f"1e{e:+d}" for e in range(-6, 7, 2)) + " |")
    print("|---|" + "---|" * 7)
    floors(axes[2])
    print(f"\n| relative error, median of {len(SEEDS)} seeds | rollouts 5 to 50 | 100 to 150 |\n|---|---|---|")
    timing(axes[3])
    figure.savefig(PLOT, dpi=130)
    print(f"\n{PLOT}")


if __name__ == "__main__":
    main()
