"""What Stable-Baselines3 and SBX, which share their environments and arguments, are told alike of a task."""

import importlib
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tasks import HIDDEN, Meter, Task


class Watch(BaseCallback):
    """Tells the meter of iterations and episodes."""

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self.meter = meter

    def _on_rollout_start(self) -> None:
        self.meter.iteration(self.num_timesteps)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self.meter.returns.append(info["episode"]["r"])
        return True

    def _on_training_end(self) -> None:
        self.meter.iteration(self.num_timesteps)


def game(env_id: str) -> gym.Env[Any, Any]:
    """The last four screens, grey and 84 by 84, by Gymnasium's own wrappers; rewards as they are."""
    importlib.import_module("ale_py")
    return FrameStackObservation(AtariPreprocessing(gym.make(env_id, frameskip=1), 30), 4)


def environments(task: Task, seed: int) -> VecEnv:
    env_id = partial(game, task.env_id) if task.pictures else task.env_id
    env = make_vec_env(env_id, n_envs=task.num_envs, seed=seed)
    return VecNormalize(env, norm_reward=False, gamma=task.gamma) if task.normalize_observation else env


def settings(task: Task) -> dict[str, Any]:
    """Arguments of a model but its policy's."""
    return {
        "n_steps": task.num_steps,
        "batch_size": task.rollout // task.minibatches,
        "n_epochs": task.epochs,
        "learning_rate": lambda left: left * task.learning_rate,
        "gamma": task.gamma,
        "gae_lambda": task.lam,
        "clip_range": task.clip_range,
        "ent_coef": task.entropy_coef,
        "vf_coef": task.value_coef,
        "max_grad_norm": task.max_grad_norm,
    }


LAYERS = {"pi": list(HIDDEN), "vf": list(HIDDEN)}
