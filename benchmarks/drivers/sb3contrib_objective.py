"""Stable-Baselines3's PPO and A2C, sb3-contrib's TRPO. Usage: sb3contrib_objective.py TASK 1 SEED ppo|a2c|trpo

All run the task's settings as far as they have them, with advantages standardised; A2C with Adam in place of RMSprop,
so that step sizes mean the same. TRPO has 10 steps of conjugate gradients and a bound of 0.01 on the divergence, and
fits its critic with as many minibatches as PPO; its gradients are not clipped.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from sb3_contrib import TRPO
from sb3_settings import layers, settings
from scale_task import arguments, finish, greedy_return
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

torch.set_num_threads(1)
task, _, seed, objective = arguments()
env = make_vec_env(task.env_id, task.num_envs, seed=seed)
if task.normalize_observation:
    env = VecNormalize(env, norm_reward=False, gamma=task.gamma)
policy = {**layers(task), "log_std_init": task.log_std, "optimizer_kwargs": {"eps": task.adam_eps}}
given = settings(task)


def without(*names):
    return {name: x for name, x in given.items() if name not in names}


common = {"policy": "MlpPolicy", "env": env, "policy_kwargs": policy, "seed": seed, "normalize_advantage": True}
if objective == "ppo":
    model = PPO(**common, **given, ent_coef=task.entropy_coef[0])
elif objective == "a2c":
    alone = without("batch_size", "n_epochs", "clip_range")
    model = A2C(**common, **alone, ent_coef=task.entropy_coef[0], use_rms_prop=False)
else:
    # One update of its critic is a pass over all minibatches, PPO's epoch.
    alone = without("n_epochs", "clip_range", "vf_coef", "max_grad_norm")
    model = TRPO(**common, **alone, n_critic_updates=task.epochs, cg_max_steps=10, target_kl=0.01)


def act(observation):
    if isinstance(env, VecNormalize):
        observation = env.normalize_obs(observation)
    return model.predict(observation, deterministic=True)[0]


model.learn(task.steps)
finish(greedy_return(task.env_id, act))
