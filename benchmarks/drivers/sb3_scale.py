"""Stable-Baselines3's PPO, rewards multiplied. Usage: sb3_scale.py TASK SCALE SEED TREATMENT

Treatments: `defaults` reads only environment and steps from the task; `matched` runs all of it; `vecnormalize` too,
with what SB3's users do about the scale of rewards: VecNormalize(norm_reward=True), its other arguments as they come.

SB3 moves its schedules after a rollout, one later than levelhead and CleanRL; here they are shifted to agree.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from gymnasium.wrappers import TransformReward
from scale_task import arguments, between, finish, greedy_return
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

torch.set_num_threads(1)
task, scale, seed, treatment = arguments()


class Entropy(BaseCallback):
    """Moves the entropy coefficient, for which SB3 has no schedule."""

    def _on_rollout_start(self) -> None:
        self.model.ent_coef = between(task.entropy_coef, self.num_timesteps / task.steps)

    def _on_step(self) -> bool:
        return True


def make_env(copies: int):
    scaled = {"func": lambda reward: scale * float(reward)}
    return make_vec_env(task.env_id, copies, seed=seed, wrapper_class=TransformReward, wrapper_kwargs=scaled)


if treatment == "defaults":
    env, callback = make_env(1), None
    model = PPO("MlpPolicy", env, seed=seed, device="cpu")
else:
    env, callback = make_env(task.num_envs), Entropy()
    if treatment == "vecnormalize" or task.normalize_observation:
        env = VecNormalize(
            env, norm_obs=task.normalize_observation, norm_reward=treatment == "vecnormalize", gamma=task.gamma
        )
    model = PPO(
        "MlpPolicy",
        env,
        learning_rate=lambda left: between(task.learning_rate, 1 - left - task.rollout / task.steps),
        n_steps=task.num_steps,
        batch_size=task.rollout // task.minibatches,
        n_epochs=task.epochs,
        gamma=task.gamma,
        gae_lambda=task.lam,
        clip_range=task.clip_range,
        normalize_advantage=True,
        vf_coef=task.value_coef,
        max_grad_norm=task.max_grad_norm,
        policy_kwargs={
            "net_arch": {"pi": list(task.hidden), "vf": list(task.hidden)},
            "activation_fn": torch.nn.Tanh,
            "log_std_init": task.log_std,
            "optimizer_kwargs": {"eps": task.adam_eps},
        },
        seed=seed,
        device="cpu",
    )


def act(observation):
    if isinstance(env, VecNormalize):
        observation = env.normalize_obs(observation)
    return model.predict(observation, deterministic=True)[0]


try:
    model.learn(task.steps, callback)
    finish(greedy_return(task.env_id, act))
except ValueError as error:  # its networks have become NaN
    finish(None, str(error).splitlines()[0])
