"""Encoders: from what a policy reads of an observation to one vector of features."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from levelhead.errors import ConfigError
from levelhead.layers import orthogonal
from levelhead.tree import Tree, by_path

ImageEncoder = Literal["nature", "impala"]


class NatureCNN(nn.Module):
    """Three convolutions and a layer of 512 units: bytes `[B, C, H, W]` to `[B, 512]`.

    Source: Mnih et al. 2015, "Human-level control through deep reinforcement learning", methods.

    Raises:
        ConfigError: the image is smaller than 36 by 36.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = shape
        if min(sides) < 36:
            raise ConfigError(f"the nature encoder reads images of at least 36 x 36, not {sides[0]} x {sides[1]}")
        for kernel, stride in ((8, 4), (4, 2), (3, 1)):
            sides = [(side - kernel) // stride + 1 for side in sides]
        self.layers = nn.Sequential(
            _convolution(channels, 32, 8, 4),
            nn.ReLU(),
            _convolution(32, 64, 4, 2),
            nn.ReLU(),
            _convolution(64, 64, 3, 1),
            nn.ReLU(),
            nn.Flatten(),
            orthogonal(nn.Linear(64 * math.prod(sides), 512), math.sqrt(2)),
            nn.ReLU(),
        )
        self.dim = 512

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(_shares(image, self))


class ImpalaCNN(nn.Module):
    """Three stages of a convolution, pooling and two residual blocks, and a layer of 256 units.

    Bytes `[B, C, H, W]` to `[B, 256]`.

    Source: Espeholt et al. 2018, "IMPALA", figure 3, right.
    """

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, *sides = shape
        stages: list[nn.Module] = []
        for width in (16, 32, 32):
            stages += [_convolution(channels, width, 3, 1, 1), nn.MaxPool2d(3, 2, 1)]
            stages += [_Residual(width), _Residual(width)]
            channels, sides = width, [(side + 1) // 2 for side in sides]
        last = orthogonal(nn.Linear(channels * math.prod(sides), 256), math.sqrt(2))
        self.layers = nn.Sequential(*stages, nn.ReLU(), nn.Flatten(), last, nn.ReLU())
        self.dim = 256

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(_shares(image, self))


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width, 3, 1, 1)
        self.second = _convolution(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(relu(self.first(relu(x))))


def _shares(image: Tensor, network: nn.Module) -> Tensor:
    """Bytes as shares of 255, in the precision that the network computes in; on a CPU in the memory layout in which its
    convolutions are fastest, channels last."""
    device = image.device.type
    if device == "cpu":
        image = image.contiguous(memory_format=torch.channels_last)  # a quarter of the work that it is with floats
    reduced = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if reduced else next(network.parameters()).dtype
    return image.to(dtype, copy=True).div_(255)


def _convolution(channels: int, width: int, kernel: int, stride: int, padding: int = 0) -> nn.Module:
    return orthogonal(nn.Conv2d(channels, width, kernel, stride, padding), math.sqrt(2))


class Encoder(nn.Module):
    """All parts of an observation, side by side `[B, dim]`; images through a network each.

    Args:
        shapes: by path, as `ObservationReader.shapes` says.
        image_encoder: what reads images.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], image_encoder: ImageEncoder) -> None:
        super().__init__()
        self._images = [path for path, shape in shapes.items() if len(shape) == 3]
        encoders = [self._make(image_encoder, shape) for shape in shapes.values() if len(shape) == 3]
        self.dim = sum(e.dim for e in encoders) + sum(shape[0] for shape in shapes.values() if len(shape) == 1)
        self.encoders = nn.ModuleList(encoders)

    @staticmethod
    def _make(kind: ImageEncoder, shape: tuple[int, int, int]) -> NatureCNN | ImpalaCNN:
        match kind:
            case "nature":
                return NatureCNN(shape)
            case "impala":
                return ImpalaCNN(shape)

    def forward(self, observation: Tree) -> Tensor:
        parts = by_path(observation)
        for path, encoder in zip(self._images, self.encoders, strict=True):
            parts[path] = encoder(parts[path])
        encoded = tuple(parts.values())
        return encoded[0] if len(encoded) == 1 else torch.cat(encoded, -1)
