"""The figures of docs/policy-gradient.md, and the variance of policy-gradient estimates where the gradient is known.

    python benchmarks/policy_gradient.py [--batches 20000] [--envs 8] [--seed 1]

Draws the clipped surrogates, Gaussian densities with their entropies, the variance of importance weights, and the
weights that GAE gives to k-step advantages. Then samples batches of episodes from a small Markov decision process whose
gradient dynamic programming knows, and prints what each credit and each baseline makes of them: the mean of the
estimates beside the gradient, and their covariance. Ten seconds.
"""

import argparse
import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from levelhead.losses import clip_surrogate, dual_clip
from levelhead.returns import earlier_rewards, gae, mean_of_others

DOCS = Path(__file__).parents[1] / "docs"
BLUE, RED, GREY = "#0b3d91", "#c23b22", "#7f7f7f"
SHADES = plt.get_cmap("viridis")


def save(figure: plt.Figure, name: str) -> None:
    path = DOCS / f"policy-gradient-{name}.png"
    figure.savefig(path, dpi=110)
    print(path)


# -- the clipped surrogate ---------------------------------------------------------------------------------------


def draw_clip(width: float = 0.2, bound: float = 3.0) -> None:
    """Surrogates over the ratio, for a good and a bad action."""
    figure, axes = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained", sharex=True)
    ratio = torch.linspace(0, 4, 801)
    for axis, sign in zip(axes, (1.0, -1.0), strict=True):
        advantage = torch.full_like(ratio, sign)
        clipped = clip_surrogate(ratio, advantage, width)
        axis.axvspan(1 - width, 1 + width, color=GREY, alpha=0.15, lw=0)
        axis.plot(ratio, ratio * advantage, color=GREY, ls=":", label="r A")
        axis.plot(ratio, clipped, color=BLUE, lw=2, label=f"clipped, range {width}")
        if sign < 0:
            axis.plot(
                ratio, dual_clip(clipped, advantage, bound), color=RED, ls="--", label=f"dual clip, c = {bound:g}"
            )
        axis.plot(1, sign, "o", color="black", ms=4)
        axis.set(xlabel="probability ratio r", title=f"A = {sign:+.0f}")
        axis.legend(fontsize="small")
    axes[0].set_ylabel("surrogate")
    save(figure, "clip")


# -- Gaussians ---------------------------------------------------------------------------------------------------


def draw_gaussians(sigmas: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)) -> None:
    """Densities, and the entropy ln(sigma) + ln(2 pi e) / 2."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.0), layout="constrained", width_ratios=(3, 2))
    constant = math.log(2 * math.pi * math.e) / 2
    grid = torch.logspace(-2.3, 0.5, 200)
    right.plot(grid, grid.log() + constant, color=GREY, zorder=1)
    for i, sigma in enumerate(sigmas):
        colour = SHADES(0.9 * i / (len(sigmas) - 1))
        x = torch.linspace(-5 * sigma, 5 * sigma, 401)
        density = torch.distributions.Normal(0.0, sigma).log_prob(x).exp()
        entropy = math.log(sigma) + constant
        left.plot(x, density, color=colour, label=f"$\\sigma$ = {sigma:g}, entropy {entropy:.2f}")
        right.plot(sigma, entropy, "o", color=colour)
    left.set(yscale="log", ylim=(0.01, 100), xlim=(-3, 3), xlabel="action", ylabel="density")
    left.legend(fontsize="x-small", loc="upper right")
    right.axhline(0, color="black", lw=0.6, ls=":")
    right.set(xscale="log", xlabel="$\\sigma$", ylabel="entropy, nats")
    save(figure, "gaussians")


# -- importance weights ------------------------------------------------------------------------------------------


def draw_importance(samples: int = 10_000, draws: int = 50) -> None:
    """Variance of p_new / p_old for Gaussians of one sigma, by how many sigmas their means differ."""
    distance = torch.linspace(0, 4, 201)
    figure, axis = plt.subplots(figsize=(4.6, 3.2), layout="constrained")
    axis.plot(distance, distance.square().expm1(), color=BLUE, label="exp(d$^2$) - 1")
    places = torch.arange(0.25, 4.01, 0.25, dtype=torch.float64)
    action = torch.randn(draws, samples, 1, dtype=torch.float64)
    # ln p(x - d) - ln p(x) = d x - d^2 / 2
    variance = (places * action - places.square() / 2).exp().var(1)
    low, middle, high = variance.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), 0)
    label = f"of {samples:,} samples, median and 5 to 95 percent"
    axis.errorbar(places, middle, torch.stack((middle - low, high - middle)), fmt="o", ms=4, color=RED, label=label)
    axis.set(
        yscale="log", ylim=(0.03, 2e7), xlabel="distance d of the means, in sigmas", ylabel="variance of the ratio"
    )
    axis.legend(fontsize="small", loc="upper left")
    save(figure, "importance")


# -- GAE ---------------------------------------------------------------------------------------------------------


def draw_gae(steps: int = 20, lambdas: tuple[float, ...] = (0.0, 0.5, 0.8, 0.9, 0.95, 1.0)) -> None:
    """Weights of the k-step advantages where `steps` are left of the episode; the last one takes what remains."""
    k = torch.arange(1, steps + 1)
    figure, axis = plt.subplots(figsize=(5.4, 3.2), layout="constrained")
    names = {0.0: " (TD)", 1.0: " (Monte-Carlo)"}
    for i, lam in enumerate(lambdas):
        weight = (1 - lam) * lam ** (k - 1)
        weight[-1] = lam ** (steps - 1)
        label = f"$\\lambda$ = {lam:g}{names.get(lam, '')}"
        colour = SHADES(0.9 * i / (len(lambdas) - 1))
        axis.plot(k[:-1], weight[:-1], "o-", ms=3.5, lw=1.2, color=colour, label=label)
        axis.plot(k[-1], weight[-1], "o", ms=6, color=colour)
    axis.set(xlabel=f"k, of {steps} steps to the end", ylabel="weight of the k-step advantage")
    axis.set_xticks((1, 5, 10, 15, 20))
    axis.legend(fontsize="small", loc="upper center")
    save(figure, "gae")


# -- advantages --------------------------------------------------------------------------------------------------

CREDITS = ("episode", "to-go")
BASELINES = ("none", "mean of all", "mean", "value")
"""`mean` is that of the other environments; `mean of all` holds the sample's own return, and is here to show what that
does."""


def advantage(reward: Tensor, value: Tensor, gamma: float, credit: str, baseline: str) -> Tensor:
    """What an action is credited with, less the baseline; `[T, N]`, one whole episode to a column.

    Args:
        reward, value: `[T, N]`.
        gamma: discount of later rewards.
        credit: `to-go` counts them; `episode` adds the earlier ones, not discounted.
        baseline: one of `BASELINES`.
    """
    everything, nothing = torch.ones_like(reward, dtype=torch.bool), torch.zeros_like(reward)
    going_on = torch.zeros_like(everything)
    ended = torch.cat((going_on[1:], everything[:1]))
    credited, _ = gae(reward, nothing, nothing, ended, going_on, gamma, lam=1.0)
    if credit == "episode":
        credited = credited + earlier_rewards(reward, ended, everything)
    match baseline:
        case "value":
            return credited - value
        case "mean":
            return credited - mean_of_others(credited, [everything])
        case "mean of all":
            return credited - credited.mean()
        case _:
            return credited


# -- a problem whose gradient is known ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Chain:
    """Four states in a row; an action moves left or right, and now and then the other way.

    The reward is the share of the way to the right end at which a step arrives; an episode starts in state 1 and has
    `horizon` steps.
    """

    states: int = 4
    horizon: int = 20
    slip: float = 0.2
    logits: tuple[float, ...] = (-0.5, 0.0, 0.5, 1.0)
    """Of going right rather than left, by state: the policy's parameters."""

    @property
    def right(self) -> Tensor:
        """Probability of going right, `[S]`."""
        return torch.tensor(self.logits, dtype=torch.float64).sigmoid()

    @property
    def transition(self) -> Tensor:
        """`[S, 2, S]`."""
        p = torch.zeros(self.states, 2, self.states, dtype=torch.float64)
        for s, action in itertools.product(range(self.states), range(2)):
            for to, share in ((1, 1 - self.slip), (0, self.slip)):
                step = 1 if (action == 1) == (to == 1) else -1
                p[s, action, min(max(s + step, 0), self.states - 1)] += share
        return p

    @property
    def reward(self) -> Tensor:
        """By the state that a step arrives at, `[S]`."""
        return torch.arange(self.states, dtype=torch.float64) / (self.states - 1)

    def action_values(self, gamma: float) -> Tensor:
        """`Q_t(s, a)`, `[T, S, 2]`, backwards from the end."""
        p, right, value, rows = self.transition, self.right, torch.zeros(self.states, dtype=torch.float64), []
        for _ in range(self.horizon):
            q = p @ (self.reward + gamma * value)
            value = q[:, 1] * right + q[:, 0] * (1 - right)
            rows.append(q)
        return torch.stack(rows).flip(0)

    def values(self, gamma: float) -> Tensor:
        """`V_t(s)`, `[T, S]`."""
        q = self.action_values(gamma)
        return q[..., 1] * self.right + q[..., 0] * (1 - self.right)

    def gradient(self, gamma: float, weight: float = 1.0) -> Tensor:
        """Sum over t of `weight^t E[grad log pi(a_t | s_t) Q_t(s_t, a_t)]` with respect to the logits, `[S]`.

        With a weight of gamma it is the gradient of the discounted return; with 1, what is estimated in practice.
        """
        q, right = self.action_values(gamma), self.right
        visits, total = torch.zeros(self.states, dtype=torch.float64), torch.zeros(self.states, dtype=torch.float64)
        visits[1] = 1.0
        for t in range(self.horizon):
            total += weight**t * visits * right * (1 - right) * (q[t, :, 1] - q[t, :, 0])
            moves = self.transition[:, 1] * right[:, None] + self.transition[:, 0] * (1 - right[:, None])
            visits = visits @ moves
        return total

    def sample(self, batches: int, envs: int) -> tuple[Tensor, Tensor, Tensor]:
        """States, actions and rewards, `[batches, T, N]`."""
        state = torch.ones(batches, envs, dtype=torch.long)
        states, actions, rewards = [], [], []
        for _ in range(self.horizon):
            action = (torch.rand(state.shape, dtype=torch.float64) < self.right[state]).long()
            kept = torch.rand(state.shape, dtype=torch.float64) >= self.slip
            step = torch.where(kept == action.bool(), 1, -1)
            states.append(state)
            actions.append(action)
            state = (state + step).clamp(0, self.states - 1)
            rewards.append(self.reward[state])
        return torch.stack(states, 1), torch.stack(actions, 1), torch.stack(rewards, 1)


def estimates(chain: Chain, state: Tensor, action: Tensor, credit: Tensor) -> Tensor:
    """Each batch's policy gradient, summed over steps and averaged over environments, `[batches, S]`."""
    score = action - chain.right[state]
    parts = [torch.where(state == s, score * credit, 0.0).sum(1).mean(1) for s in range(chain.states)]
    return torch.stack(parts, 1)


def tabulate(batches: int, envs: int, shown: int = 1) -> None:
    """What each credit and baseline makes of the same samples; `shown` is the state whose component is printed."""
    chain = Chain()
    state, action, reward = chain.sample(batches, envs)
    whole = chain.gradient(1.0)
    print(f"\n{batches:,} batches of {envs} episodes of {chain.horizon} steps; exact: the component of state {shown}")
    print("deviation: the largest of the four components', in standard errors; noise: trace / |gradient|^2\n")
    print("| gamma | credit | baseline | exact | mean of estimates | standard error | deviation | trace | noise |")
    print("|---|---|---|---|---|---|---|---|---|")
    for gamma in (1.0, 0.95):
        exact = chain.gradient(gamma)
        time = torch.arange(chain.horizon)[:, None]
        value = chain.values(gamma)[time, state]
        for credit, baseline in itertools.product(CREDITS, BASELINES):

            def one(reward: Tensor, value: Tensor, how: tuple[float, str, str] = (gamma, credit, baseline)) -> Tensor:
                return advantage(reward, value, *how)

            gradients = estimates(chain, state, action, torch.vmap(one)(reward, value))
            mean, variance = gradients.mean(0), gradients.var(0)
            error = (variance / batches).sqrt()
            cells = [f"{gamma:g}", credit, baseline, f"{exact[shown]:.4f}", f"{mean[shown]:.4f}", f"{error[shown]:.4f}"]
            trace = float(variance.sum())
            deviation = float(((mean - exact) / error).abs().max())
            cells += [f"{deviation:.1f}", f"{trace:.3f}", f"{trace / float(exact.square().sum()):.3f}"]
            print("| " + " | ".join(cells) + " |")
    print("\n| gradient, by state | " + " | ".join(map(str, range(chain.states))) + " | angle to the first |")
    print("|---|" + "---|" * (chain.states + 1))
    for label, gradient in (
        ("of the return", whole),
        ("estimated with gamma 0.95", chain.gradient(0.95)),
        ("of the return discounted by 0.95", chain.gradient(0.95, 0.95)),
    ):
        cosine = float((gradient @ whole / (gradient.norm() * whole.norm())).clamp(max=1.0))
        numbers = " | ".join(f"{x:.4f}" for x in gradient)
        print(f"| {label} | {numbers} | {math.degrees(math.acos(cosine)):.1f} degrees |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20_000)
    parser.add_argument("--envs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(a.seed)
    draw_clip()
    draw_gaussians()
    draw_importance()
    draw_gae()
    tabulate(a.batches, a.envs)


if __name__ == "__main__":
    main()
