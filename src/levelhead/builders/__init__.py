"""Turns a config into objects: the one place that asks which variant was chosen."""

from levelhead.builders.policy import (
    build_action_head,
    build_device,
    build_network,
    build_policy,
    build_sigma,
    build_value_head,
)
from levelhead.builders.training import (
    build_advantage,
    build_estimator,
    build_learner,
    build_objective,
    build_trainer,
    place_shards,
)

__all__ = [
    "build_action_head",
    "build_advantage",
    "build_device",
    "build_estimator",
    "build_learner",
    "build_network",
    "build_objective",
    "build_policy",
    "build_sigma",
    "build_trainer",
    "build_value_head",
    "place_shards",
]
