"""CleanRL's PPO, rewards multiplied. Usage: cleanrl_scale.py TASK SCALE SEED as-shipped

Runs the text of ppo.py, or for continuous actions ppo_continuous_action.py, from the package `cleanrl` of PyPI, with
the task's hyperparameters as its command line. `EDITS` are what its 1.2.0 of 2023 needs for Gymnasium 1.4, and the
multiplication of rewards, innermost; each must match exactly once. Its logging of episodes is left out.

As shipped, ppo.py leaves observations and rewards as they are, while ppo_continuous_action.py standardises
observations, divides rewards by the spread of their discounted sum and clips both to +-10. Each environment has its
own such statistics, and they drift apart (Pendulum, 8 environments, 100k steps at scale 1: -294 and -580), so that this
file runs as it comes with one environment, whose rollouts are as long as those of all the others' together. Both files
treat a time limit as an end. Their clip of the value loss is in raw units and on by default; it is off here, as in the
other libraries. Their loss has half the squared error, so that its coefficient is twice the task's.

There is no greedy evaluation: `agent` is taken from the finished script, with its environment's statistics.
"""

import os
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium as gym
import numpy as np
import torch
from scale_task import arguments, finish, greedy_return

STEP = "next_obs, reward, {} = envs.step(action.cpu().numpy())"
EDITS = {
    "ppo.py": {
        "import gym\n": "import gymnasium as gym\n",
        "        env.seed(seed)\n": "",
        "envs.reset()": "envs.reset(seed=args.seed)[0]",
        STEP.format("done, info"): STEP.format("terminated, truncated, info") + "; done = terminated | truncated",
        "for item in info:": "for item in ():",
    },
    "ppo_continuous_action.py": {
        "lambda obs: np.clip(obs, -10, 10))": "lambda obs: np.clip(obs, -10, 10), None)",
        'if "final_info" not in infos:': "if True:",
    },
}
EDITS_OF_BOTH = {
    "from distutils.util import strtobool\n": 'strtobool = {"True": 1, "False": 0}.__getitem__\n',
    "gym.make(env_id)\n": "gym.wrappers.TransformReward(gym.make(env_id), lambda reward: SCALE * float(reward))\n",
    "for i in range(args.num_envs)]\n": "for i in range(args.num_envs)],"
    " autoreset_mode=gym.vector.AutoresetMode.SAME_STEP\n",
}


def source(name: str) -> tuple[Path, str]:
    """One of its files, edited."""
    path = Path(str(distribution("cleanrl").locate_file(f"cleanrl/{name}")))
    text = path.read_text()
    for old, new in {**EDITS[name], **EDITS_OF_BOTH}.items():
        if text.count(old) != 1:
            raise SystemExit(f"{path} has {old!r} {text.count(old)} times; expected once")
        text = text.replace(old, new)
    return path, text


def require(**fixed: object) -> None:
    """Refuses a task that asks for what its files have hard-wired otherwise."""
    for name, value in fixed.items():
        if getattr(task, name) != value:
            raise SystemExit(f"CleanRL has {name} {value}, and the task {getattr(task, name)}")


task, scale, seed, treatment = arguments()
torch.set_num_threads(1)
space = gym.make(task.env_id).action_space
continuous = isinstance(space, gym.spaces.Box)
if treatment != "as-shipped":
    raise SystemExit(f"unknown treatment {treatment}")
require(hidden=(64, 64), adam_eps=1e-5, log_std=0.0, entropy_coef=(task.entropy_coef[0],) * 2)
require(learning_rate=(task.learning_rate[0], 0.0))
options = {
    "env-id": task.env_id,
    "total-timesteps": task.steps,
    "seed": seed,
    "cuda": False,
    "learning-rate": task.learning_rate[0],
    "num-envs": 1 if continuous else task.num_envs,
    "num-steps": task.rollout if continuous else task.num_steps,
    "gamma": task.gamma,
    "gae-lambda": task.lam,
    "num-minibatches": task.minibatches,
    "update-epochs": task.epochs,
    "clip-coef": task.clip_range,
    "clip-vloss": False,
    "ent-coef": task.entropy_coef[0],
    "vf-coef": 2 * task.value_coef,
    "max-grad-norm": task.max_grad_norm,
}
path, text = source("ppo_continuous_action.py" if continuous else "ppo.py")
sys.argv = [str(path), *(x for name, value in options.items() for x in (f"--{name}", str(value)))]
script = {"__name__": "__main__", "__file__": str(path), "SCALE": scale}


@torch.no_grad()
def act(observation):
    if continuous:
        seen = script["envs"].envs[0].get_wrapper_attr("obs_rms")
        observation = np.clip((observation - seen.mean) / np.sqrt(seen.var + 1e-8), -10, 10)
    agent = script["agent"]
    answer = (agent.actor_mean if continuous else agent.actor)(torch.Tensor(observation))
    if not answer.isfinite().all():
        raise ValueError("the actor's output is not finite")
    return np.clip(answer.numpy(), space.low, space.high) if continuous else answer.argmax(-1).numpy()


with tempfile.TemporaryDirectory() as directory:
    os.chdir(directory)
    try:
        exec(compile(text, path, "exec"), script)
        finish(greedy_return(task.env_id, act))
    except ValueError as error:  # its networks have become NaN
        finish(None, str(error).splitlines()[0])
    os.chdir("/")
