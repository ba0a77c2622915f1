"""sb3-contrib's MaskablePPO on a task: prints one RESULT line. Usage: sb3contrib_maskable.py TASK

The environment has a method `action_masks`. The LSTM of the task is not read.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peer_task import argument, finish
from sb3_contrib import MaskablePPO
from sb3_settings import layers, settings
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)
task = argument()
model = MaskablePPO(
    "MlpPolicy",
    make_vec_env(task.env_id, task.num_envs, seed=task.seed),
    **settings(task),
    ent_coef=task.entropy_coef,
    policy_kwargs=layers(task),
    seed=task.seed,
)


def act(observation, mask, first):
    return model.predict(observation, deterministic=True, action_masks=mask)[0]


started = time.perf_counter()
model.learn(task.steps)
finish(task, act, time.perf_counter() - started)
