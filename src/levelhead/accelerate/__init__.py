"""What runs in torch, which defines it, and what in native or compiled code, which agrees with it to rounding."""

from levelhead.accelerate.actor import NativeActor
from levelhead.accelerate.compiled import CompiledEpochs
from levelhead.accelerate.critic import NativeCritic
from levelhead.accelerate.epochs import NativeEpochs
from levelhead.accelerate.estimates import NativeGAE, natively
from levelhead.accelerate.support import (
    Engine,
    acting_refusal,
    compiling_pays,
    compiling_refusal,
    is_worthwhile,
    learning_refusal,
    valuing_refusal,
)

__all__ = [
    "CompiledEpochs",
    "Engine",
    "NativeActor",
    "NativeCritic",
    "NativeEpochs",
    "NativeGAE",
    "acting_refusal",
    "compiling_pays",
    "compiling_refusal",
    "is_worthwhile",
    "learning_refusal",
    "natively",
    "valuing_refusal",
]
