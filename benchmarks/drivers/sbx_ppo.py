"""SBX, Stable-Baselines3 in JAX, on a task: prints one RESULT line. Usage: sbx_ppo.py TASK SEED

It doesn't clip values, though it takes the argument, and clips the gradients of actor and critic each by its own norm.
JAX has as many threads as it takes of itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from flax import linen
from sb3_task import LAYERS, Watch, environments, settings
from sbx import PPO
from tasks import Meter, arguments

torch.set_num_threads(1)
task, seed = arguments()
meter = Meter(task)
model = PPO(
    "MlpPolicy",
    environments(task, seed),
    **settings(task),
    policy_kwargs={"net_arch": LAYERS, "activation_fn": linen.tanh},
    seed=seed,
)
model.learn(task.steps, Watch(meter))
meter.finish()
