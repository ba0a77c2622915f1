"""Action heads: the last layer of a policy and the distribution it stands for."""

from levelhead.actions.categorical import CategoricalHead
from levelhead.actions.gaussian import GaussianHead, GaussianParameters
from levelhead.actions.head import ActionHead, Evaluation

__all__ = ["ActionHead", "CategoricalHead", "Evaluation", "GaussianHead", "GaussianParameters"]
