"""Stable-Baselines3's PPO, rewards multiplied. Usage: sb3_scale.py TASK SCALE SEED TREATMENT

Treatments: `defaults` reads only environment and steps from the task; `matched` runs all of it; `vecnormalize` too,
with what SB3's users do about the scale of rewards: VecNormalize(norm_reward=True), its other arguments as they come.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from gymnasium.wrappers import TransformReward
from sb3_settings import layers, settings
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
        **settings(task),
        normalize_advantage=True,
        policy_kwargs={
            **layers(task),
            "log_std_init": task.log_std,
            "optimizer_kwargs": {"eps": task.adam_eps},
        },
        seed=seed,
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
