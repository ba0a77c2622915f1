"""levelhead: PPO whose value function stays level at any reward scale, and the value heads that make it so."""

import importlib
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from levelhead.actions import ActionHead as ActionHead
    from levelhead.actions import BetaHead as BetaHead
    from levelhead.actions import CategoricalHead as CategoricalHead
    from levelhead.actions import ConditionedSigma as ConditionedSigma
    from levelhead.actions import Gate as Gate
    from levelhead.actions import GaussianHead as GaussianHead
    from levelhead.actions import IndependentSigma as IndependentSigma
    from levelhead.actions import JointHead as JointHead
    from levelhead.actions import MultiCategoricalHead as MultiCategoricalHead
    from levelhead.actions import Part as Part
    from levelhead.actions import ScheduledSigma as ScheduledSigma
    from levelhead.actions import Sigma as Sigma
    from levelhead.actions import TanhGaussianHead as TanhGaussianHead
    from levelhead.api import Run as Run
    from levelhead.api import evaluate as evaluate
    from levelhead.api import load_policy as load_policy
    from levelhead.api import resume as resume
    from levelhead.api import train as train
    from levelhead.builders import build_policy as build_policy
    from levelhead.builders import build_trainer as build_trainer
    from levelhead.config import ActionConfig as ActionConfig
    from levelhead.config import AuxiliaryConfig as AuxiliaryConfig
    from levelhead.config import Config as Config
    from levelhead.config import CriticConfig as CriticConfig
    from levelhead.config import EnvConfig as EnvConfig
    from levelhead.config import GroupConfig as GroupConfig
    from levelhead.config import HeadConfig as HeadConfig
    from levelhead.config import MemoryConfig as MemoryConfig
    from levelhead.config import NetworkConfig as NetworkConfig
    from levelhead.config import OptimizerConfig as OptimizerConfig
    from levelhead.config import ParallelConfig as ParallelConfig
    from levelhead.config import PPOConfig as PPOConfig
    from levelhead.envs import EnvState as EnvState
    from levelhead.envs import GymnasiumVecEnv as GymnasiumVecEnv
    from levelhead.envs import MultiTaskVecEnv as MultiTaskVecEnv
    from levelhead.envs import Step as Step
    from levelhead.envs import TensorCartPole as TensorCartPole
    from levelhead.envs import TensorVecEnv as TensorVecEnv
    from levelhead.envs import VecEnv as VecEnv
    from levelhead.envs import make_env as make_env
    from levelhead.envs import make_gymnasium as make_gymnasium
    from levelhead.errors import CheckpointError as CheckpointError
    from levelhead.errors import ConfigError as ConfigError
    from levelhead.errors import LevelheadError as LevelheadError
    from levelhead.errors import RankError as RankError
    from levelhead.errors import StorageError as StorageError
    from levelhead.errors import TrainingFault as TrainingFault
    from levelhead.evaluation import Report as Report
    from levelhead.losses import clip_surrogate as clip_surrogate
    from levelhead.networks import GRU as GRU
    from levelhead.networks import LSTM as LSTM
    from levelhead.networks import ImpalaCNN as ImpalaCNN
    from levelhead.networks import Memory as Memory
    from levelhead.networks import NatureCNN as NatureCNN
    from levelhead.networks import Network as Network
    from levelhead.networks import Policy as Policy
    from levelhead.networks import Torso as Torso
    from levelhead.numerics import explained_variance as explained_variance
    from levelhead.numerics import local as local
    from levelhead.objectives import A2CObjective as A2CObjective
    from levelhead.objectives import ClipObjective as ClipObjective
    from levelhead.objectives import KLObjective as KLObjective
    from levelhead.objectives import LineSearch as LineSearch
    from levelhead.objectives import Objective as Objective
    from levelhead.objectives import ObjectiveLoss as ObjectiveLoss
    from levelhead.objectives import TrustRegionObjective as TrustRegionObjective
    from levelhead.objectives import VPGObjective as VPGObjective
    from levelhead.presets import preset as preset
    from levelhead.returns import gae as gae
    from levelhead.returns import n_step as n_step
    from levelhead.returns import v_trace as v_trace
    from levelhead.schedules import Schedule as Schedule
    from levelhead.trainer import Iteration as Iteration
    from levelhead.trainer import Trainer as Trainer
    from levelhead.values import SIGNED_SQRT as SIGNED_SQRT
    from levelhead.values import SYMLOG as SYMLOG
    from levelhead.values import HLGaussValueHead as HLGaussValueHead
    from levelhead.values import LinearValueHead as LinearValueHead
    from levelhead.values import PopArtValueHead as PopArtValueHead
    from levelhead.values import RunningNormHead as RunningNormHead
    from levelhead.values import Transform as Transform
    from levelhead.values import TransformValueHead as TransformValueHead
    from levelhead.values import TwoHotValueHead as TwoHotValueHead
    from levelhead.values import ValueHead as ValueHead
    from levelhead.values import ValueNormalizer as ValueNormalizer
    from levelhead.values import ValueNormHead as ValueNormHead
    from levelhead.values import value_loss as value_loss

__version__ = version("levelhead")

_HOME = {
    "levelhead.actions": (
        "ActionHead",
        "BetaHead",
        "CategoricalHead",
        "ConditionedSigma",
        "Gate",
        "GaussianHead",
        "IndependentSigma",
        "JointHead",
        "MultiCategoricalHead",
        "Part",
        "ScheduledSigma",
        "Sigma",
        "TanhGaussianHead",
    ),
    "levelhead.api": ("Run", "evaluate", "load_policy", "resume", "train"),
    "levelhead.builders": ("build_policy", "build_trainer"),
    "levelhead.config": (
        "ActionConfig",
        "Config",
        "AuxiliaryConfig",
        "CriticConfig",
        "EnvConfig",
        "GroupConfig",
        "HeadConfig",
        "MemoryConfig",
        "NetworkConfig",
        "OptimizerConfig",
        "PPOConfig",
        "ParallelConfig",
    ),
    "levelhead.envs": (
        "EnvState",
        "GymnasiumVecEnv",
        "MultiTaskVecEnv",
        "Step",
        "TensorCartPole",
        "TensorVecEnv",
        "VecEnv",
        "make_env",
        "make_gymnasium",
    ),
    "levelhead.errors": (
        "CheckpointError",
        "ConfigError",
        "LevelheadError",
        "RankError",
        "StorageError",
        "TrainingFault",
    ),
    "levelhead.evaluation": ("Report",),
    "levelhead.losses": ("clip_surrogate",),
    "levelhead.networks": ("GRU", "LSTM", "ImpalaCNN", "Memory", "NatureCNN", "Network", "Policy", "Torso"),
    "levelhead.numerics": ("explained_variance", "local"),
    "levelhead.objectives": (
        "A2CObjective",
        "ClipObjective",
        "KLObjective",
        "LineSearch",
        "Objective",
        "ObjectiveLoss",
        "TrustRegionObjective",
        "VPGObjective",
    ),
    "levelhead.presets": ("preset",),
    "levelhead.returns": ("gae", "n_step", "v_trace"),
    "levelhead.schedules": ("Schedule",),
    "levelhead.trainer": ("Iteration", "Trainer"),
    "levelhead.values": (
        "SIGNED_SQRT",
        "SYMLOG",
        "HLGaussValueHead",
        "LinearValueHead",
        "PopArtValueHead",
        "RunningNormHead",
        "Transform",
        "TransformValueHead",
        "TwoHotValueHead",
        "ValueHead",
        "ValueNormHead",
        "ValueNormalizer",
        "value_loss",
    ),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    # Loaded on first use: someone who wants a value head does not wait for environments and writers.
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'levelhead' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
