"""levelhead on a task of sb3-contrib's: prints one RESULT line. Usage: levelhead_peer.py TASK recurrent|maskable

`recurrent` gives actor and critic an LSTM each, with their hidden layers behind it; `maskable` has no memory. Masks are
used wherever the environment gives them. Everything that the task doesn't name is levelhead's default, PopArt included.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from peer_task import argument, finish

import levelhead as lh

torch.set_num_threads(1)
kind = sys.argv.pop()
task = argument()
start, end = task.learning_rate
config = lh.Config(
    task.env_id,
    total_steps=task.steps,
    seed=task.seed,
    num_envs=task.num_envs,
    num_steps=task.num_steps,
    device="cpu",
    network=lh.NetworkConfig(actor=task.hidden, critic=task.hidden, activation="tanh"),
    memory={
        "recurrent": lh.MemoryConfig("lstm", task.lstm_size, place="before", sharing="separate"),
        "maskable": lh.MemoryConfig(),
    }[kind],
    ppo=lh.PPOConfig(
        gamma=task.gamma,
        lam=task.lam,
        epochs=task.epochs,
        minibatches=task.minibatches,
        clip_range=task.clip_range,
        entropy_coef=task.entropy_coef,
        value_coef=task.value_coef,
    ),
    optimizer=lh.OptimizerConfig(
        learning_rate=start if start == end else lh.Schedule(start, end), max_grad_norm=task.max_grad_norm
    ),
)
env = lh.make_gymnasium(task.env_id, task.num_envs)
policy = lh.build_policy(config, env.observation_space, env.action_space)
trainer = lh.build_trainer(config, env, policy)


def act(observation, mask, first):
    if first:
        policy.reset()
    return policy.act(observation, mask)


started = time.perf_counter()
for _ in trainer:
    pass
finish(task, act, time.perf_counter() - started)
