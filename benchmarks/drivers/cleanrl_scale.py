"""CleanRL's PPO, rewards multiplied. Usage: cleanrl_scale.py TASK SCALE SEED as-shipped

Rewards are multiplied innermost. The statistics that each environment has of its own for continuous actions drift apart
(Pendulum, 8 environments, 100k steps at scale 1: -294 and -580), so that this file runs as it comes with one
environment, whose rollouts are as long as those of all the others' together. The clip of the value loss is in raw units
and on by default; it is off here, as in the other libraries.

There is no greedy evaluation: `agent` is taken from the finished script, with its environment's statistics.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium as gym
import numpy as np
import torch
from cleanrl_files import continuous, finished, settings
from scale_task import arguments, finish, greedy_return

REWARDS = {
    "gym.make(env_id)\n": "gym.wrappers.TransformReward(gym.make(env_id), lambda reward: SCALE * float(reward))\n"
}


def require(**fixed: object) -> None:
    """Refuses a task that asks for what its files have hard-wired otherwise."""
    for name, value in fixed.items():
        if getattr(task, name) != value:
            raise SystemExit(f"CleanRL has {name} {value}, and the task {getattr(task, name)}")


task, scale, seed, treatment = arguments()
torch.set_num_threads(1)
space = gym.make(task.env_id).action_space
real = continuous(task.env_id)
if treatment != "as-shipped":
    raise SystemExit(f"unknown treatment {treatment}")
require(hidden=(64, 64), adam_eps=1e-5, log_std=0.0, entropy_coef=(task.entropy_coef[0],) * 2)
require(learning_rate=(task.learning_rate[0], 0.0))
options = {
    **settings(task, seed),
    **({"num-envs": 1, "num-steps": task.rollout} if real else {}),
    "learning-rate": task.learning_rate[0],
    "clip-vloss": False,
    "ent-coef": task.entropy_coef[0],
}


@torch.no_grad()
def act(script, observation):
    if real:
        seen = script["envs"].envs[0].get_wrapper_attr("obs_rms")
        observation = np.clip((observation - seen.mean) / np.sqrt(seen.var + 1e-8), -10, 10)
    agent = script["agent"]
    answer = (agent.actor_mean if real else agent.actor)(torch.Tensor(observation))
    if not answer.isfinite().all():
        raise ValueError("the actor's output is not finite")
    return np.clip(answer.numpy(), space.low, space.high) if real else answer.argmax(-1).numpy()


try:
    with finished(options, REWARDS, SCALE=scale) as script:
        finish(greedy_return(task.env_id, lambda observation: act(script, observation)))
except ValueError as error:  # its networks have become NaN
    finish(None, str(error).splitlines()[0])
