"""Stable-Baselines3's PPO as it comes, rewards multiplied. Usage: sb3_scale.py ENV_ID STEPS SCALE SEED

Prints one RESULT line: the greedy return over 20 episodes, in the environment's own units.
"""

import json
import sys

import gymnasium as gym
import torch
from gymnasium.wrappers import TransformReward
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

torch.set_num_threads(1)
env_id, steps, scale, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
env = TransformReward(Monitor(gym.make(env_id)), lambda reward: scale * float(reward))
model = PPO("MlpPolicy", env, seed=seed, device="cpu")
try:
    model.learn(steps)
    score, _ = evaluate_policy(model, Monitor(gym.make(env_id)), n_eval_episodes=20, deterministic=True)
except ValueError as error:  # its networks have become NaN
    score, note = None, str(error).splitlines()[0]
else:
    note = ""
print("RESULT " + json.dumps({"return": score, "note": note}), flush=True)
