"""Networks: from observations to the features that action and value heads read."""

from levelhead.networks.encoders import Encoder, ImageEncoder, ImpalaCNN, NatureCNN
from levelhead.networks.memory import GRU, LSTM, Memory
from levelhead.networks.network import Network, State, Torso
from levelhead.networks.normalizer import ObservationNormalizer
from levelhead.networks.observation import Numbers, ObservationReader
from levelhead.networks.policy import Policy

__all__ = [
    "GRU",
    "LSTM",
    "Encoder",
    "ImageEncoder",
    "ImpalaCNN",
    "Memory",
    "NatureCNN",
    "Network",
    "Numbers",
    "ObservationNormalizer",
    "ObservationReader",
    "Policy",
    "State",
    "Torso",
]
