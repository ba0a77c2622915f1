"""sb3-contrib's MaskablePPO on a task: prints one RESULT line. Usage: sb3contrib_maskable.py TASK

The environment has a method `action_masks`. The LSTM of the task is not read; schedules are shifted as in sb3_scale.py.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peer_task import argument, finish
from sb3_contrib import MaskablePPO
from scale_task import between
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)
task = argument()
model = MaskablePPO(
    "MlpPolicy",
    make_vec_env(task.env_id, task.num_envs, seed=task.seed),
    learning_rate=lambda left: between(task.learning_rate, 1 - left - task.rollout / task.steps),
    n_steps=task.num_steps,
    batch_size=task.rollout // task.minibatches,
    n_epochs=task.epochs,
    gamma=task.gamma,
    gae_lambda=task.lam,
    clip_range=task.clip_range,
    ent_coef=task.entropy_coef,
    vf_coef=task.value_coef,
    max_grad_norm=task.max_grad_norm,
    policy_kwargs={
        "net_arch": {"pi": list(task.hidden), "vf": list(task.hidden)},
        "activation_fn": torch.nn.Tanh,
    },
    seed=task.seed,
    device="cpu",
)


def act(observation, mask, first):
    return model.predict(observation, deterministic=True, action_masks=mask)[0]


started = time.perf_counter()
model.learn(task.steps)
finish(task, act, time.perf_counter() - started)
