"""Stable-Baselines3's PPO with a PopArt head for its `value_net`, on CartPole-v1 with rewards times 1000.

SB3 takes its value loss between `policy.evaluate_actions` and the returns in the rollout buffer. Both are brought to
the head's normalised axis for the time of `train`; everything else in SB3 goes on seeing values in reward units.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch import Tensor

import levelhead as lh


class PopArtPolicy(ActorCriticPolicy):
    """`value_net` is a PopArt head; `forward` and `predict_values` still answer in reward units."""

    value_net: lh.PopArtValueHead

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        self.value_net = lh.PopArtValueHead(self.mlp_extractor.latent_dim_vf)
        # The optimiser that SB3 made holds the layer that is gone.
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
        self.value_net.track(self.optimizer)

    def evaluate_actions(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """As SB3's, but with normalised values: `PPO.train`, which alone calls it, takes its loss from them."""
        features = self.extract_features(obs)
        pi_features, vf_features = features if isinstance(features, tuple) else (features, features)
        distribution = self._get_action_dist_from_latent(self.mlp_extractor.forward_actor(pi_features))
        values = self.value_net.forward_normalized(self.mlp_extractor.forward_critic(vf_features))
        return values, distribution.log_prob(actions), distribution.entropy()


class PopArtPPO(PPO):
    """PPO for a `PopArtPolicy`."""

    policy: PopArtPolicy

    def train(self) -> None:
        head, buffer = self.policy.value_net, self.rollout_buffer
        # Once per rollout, before the epochs. Outputs are preserved, so the buffer's values are still the critic's.
        head.observe(torch.as_tensor(buffer.returns))
        # Old values are there for `clip_range_vf`, which now means the same at any reward scale. Advantages are
        # standardised by SB3, and stay as they are. The buffer is emptied before it is filled again.
        buffer.returns = head.normalize(torch.as_tensor(buffer.returns)).numpy()
        buffer.values = head.normalize(torch.as_tensor(buffer.values)).numpy()
        super().train()


def make_envs(reward_scale: float, num_envs: int = 8) -> VecEnv:
    """CartPole with scaled rewards; the Monitor inside logs returns in the environment's own units."""

    def make() -> gym.Env:
        return gym.wrappers.TransformReward(Monitor(gym.make("CartPole-v1")), lambda reward: reward_scale * reward)

    return DummyVecEnv([make] * num_envs)


def train(popart: bool, reward_scale: float, total_steps: int, seed: int) -> PPO:
    kind, policy = (PopArtPPO, PopArtPolicy) if popart else (PPO, "MlpPolicy")
    model = kind(policy, make_envs(reward_scale), n_steps=128, batch_size=256, n_epochs=4, seed=seed, device="cpu")
    return model.learn(total_steps)


def evaluate(model: PPO, episodes: int = 20) -> float:
    """Mean greedy return, in the environment's own units."""
    envs = make_envs(reward_scale=1.0)
    envs.seed(1000)
    return evaluate_policy(model, envs, n_eval_episodes=episodes, deterministic=True)[0]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--total-steps", type=int, default=60_000, help="environment steps (default: 60,000)")
    parser.add_argument("--reward-scale", type=float, default=1000.0, help="multiplies every reward (default: 1000)")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    print(f"greedy return on CartPole-v1 after {args.total_steps} steps with rewards times {args.reward_scale:g}:")
    for name, popart in (("value_net as it is", False), ("PopArt value_net", True)):
        print(f"  {name:20}{evaluate(train(popart, args.reward_scale, args.total_steps, args.seed)):7.1f}", flush=True)


if __name__ == "__main__":
    main()
