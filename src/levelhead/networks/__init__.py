"""Networks: from observations to the features that action and value heads read."""

from levelhead.networks.mlp import Activation, mlp
from levelhead.networks.normalizer import ObservationNormalizer
from levelhead.networks.policy import Network, Policy

__all__ = ["Activation", "Network", "ObservationNormalizer", "Policy", "mlp"]
