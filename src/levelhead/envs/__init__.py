"""Environments as tensors: one protocol, one adapter per family."""

from levelhead.envs.atari import is_atari
from levelhead.envs.backends import Backend, choose_backend
from levelhead.envs.cartpole import TensorCartPole
from levelhead.envs.gymnasium import GymnasiumVecEnv, make_gymnasium
from levelhead.envs.multitask import MultiTaskVecEnv, make_env, task_names
from levelhead.envs.processes import Workers
from levelhead.envs.shards import ShardedVecEnv
from levelhead.envs.tensors import TensorVecEnv
from levelhead.envs.vec import ArrayStep, EnvState, Step, VecEnv

__all__ = [
    "ArrayStep",
    "Backend",
    "EnvState",
    "GymnasiumVecEnv",
    "MultiTaskVecEnv",
    "ShardedVecEnv",
    "Step",
    "TensorCartPole",
    "TensorVecEnv",
    "VecEnv",
    "Workers",
    "choose_backend",
    "is_atari",
    "make_env",
    "make_gymnasium",
    "task_names",
]
