"""Stable-Baselines3 on a task: prints one RESULT line. Usage: sb3_ppo.py TASK SEED"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from sb3_task import LAYERS, Watch, environments, settings
from stable_baselines3 import PPO
from tasks import Meter, arguments

task, seed = arguments()
torch.set_num_threads(task.threads)
meter = Meter(task)
vector = {"net_arch": LAYERS, "activation_fn": torch.nn.Tanh}
model = PPO(
    "CnnPolicy" if task.pictures else "MlpPolicy",
    environments(task, seed),
    **settings(task),
    clip_range_vf=task.clip_range,
    policy_kwargs={} if task.pictures else vector,  # of pictures it is the network of Mnih et al. as it stands
    seed=seed,
    device="cpu",
)
model.learn(task.steps, Watch(meter))
meter.finish()
