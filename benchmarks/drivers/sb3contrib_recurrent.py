"""sb3-contrib's RecurrentPPO on a task: prints one RESULT line. Usage: sb3contrib_recurrent.py TASK

Actor and critic have an LSTM each, of one layer, and their hidden layers behind it.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from peer_task import EPISODES, argument, finish
from sb3_contrib import RecurrentPPO
from sb3_settings import layers, settings
from stable_baselines3.common.env_util import make_vec_env

torch.set_num_threads(1)
task = argument()
model = RecurrentPPO(
    "MlpLstmPolicy",
    make_vec_env(task.env_id, task.num_envs, seed=task.seed),
    **settings(task),
    ent_coef=task.entropy_coef,
    policy_kwargs={**layers(task), "lstm_hidden_size": task.lstm_size},
    seed=task.seed,
)
state = None


def act(observation, mask, first):
    global state
    action, state = model.predict(observation, state, np.full(EPISODES, first), deterministic=True)
    return action


started = time.perf_counter()
model.learn(task.steps)
finish(task, act, time.perf_counter() - started)
