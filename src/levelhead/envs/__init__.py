"""Environments as tensors: one protocol, one adapter per family."""

from levelhead.envs.gymnasium import GymnasiumVecEnv, make_gymnasium
from levelhead.envs.vec import Step, VecEnv

__all__ = ["GymnasiumVecEnv", "Step", "VecEnv", "make_gymnasium"]
