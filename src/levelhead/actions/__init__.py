"""Action heads: the last layer of a policy and the distribution it stands for."""

from levelhead.actions.beta import BetaHead
from levelhead.actions.bounds import Bounds, UnitBounds
from levelhead.actions.categorical import CategoricalHead, MultiCategoricalHead
from levelhead.actions.gaussian import BoundsHandling, GaussianHead, GaussianParameters
from levelhead.actions.head import ActionHead, Evaluation
from levelhead.actions.joint import Gate, JointHead, Part, in_order
from levelhead.actions.noise import colored_noise
from levelhead.actions.sigma import ConditionedSigma, IndependentSigma, ScheduledSigma, Sigma
from levelhead.actions.tanh_gaussian import TanhGaussianHead

__all__ = [
    "ActionHead",
    "BetaHead",
    "Bounds",
    "BoundsHandling",
    "CategoricalHead",
    "ConditionedSigma",
    "Evaluation",
    "Gate",
    "GaussianHead",
    "GaussianParameters",
    "IndependentSigma",
    "JointHead",
    "MultiCategoricalHead",
    "Part",
    "ScheduledSigma",
    "Sigma",
    "TanhGaussianHead",
    "UnitBounds",
    "colored_noise",
    "in_order",
]
