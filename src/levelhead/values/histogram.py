"""Heads that predict a distribution over bins and learn by cross-entropy."""

import math
from abc import abstractmethod

import torch
from torch import Tensor, nn

from levelhead.values.fixed import FixedAxisHead
from levelhead.values.head import ValueHead
from levelhead.values.transforms import SYMLOG, symexp, symlog


class HistogramHead(ValueHead):
    """What the distributional heads share: logits over bins per output, and their mean as the value.

    The layer's rows are ordered by output, then by bin. Bins lie symmetrically around 0 on the normalized axis, and
    targets outside them count as the outermost. A cross-entropy has no value clip: `old_values`, `clip` and
    `huber` are refused.

    Args:
        bins: number of bins per output.
        limit: the bins' ends are `-limit` and `limit`, on the normalized axis.
    """

    squared = False
    atoms: Tensor
    """float64 `[bins]`: what each bin stands for; on which axis is the subclass's business."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        beta: float,
        epsilon: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        bins: int,
        limit: float,
    ) -> None:
        if type(bins) is not int or bins < 2:
            raise ValueError(f"bins must be an integer of at least 2, not {bins}")
        if not 0.0 < limit < math.inf:
            raise ValueError(f"limit must be finite and positive, not {limit}")
        super().__init__(input_dim, output_dim, beta, epsilon, dtype=dtype)
        self.bins = bins
        self.limit = limit
        self.linear = nn.Linear(input_dim, output_dim * bins, dtype=dtype)
        self.register_buffer("atoms", torch.empty(bins, dtype=torch.float64), persistent=False)
        self.reset_parameters()
        if device is not None:
            self.to(device)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bins={self.bins}, limit={self.limit}"

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.atoms.copy_(self._make_atoms())

    def _fits(self, other: ValueHead) -> bool:
        return super()._fits(other) and isinstance(other, HistogramHead) and torch.equal(self.atoms, other.atoms)

    @abstractmethod
    def _make_atoms(self) -> Tensor:
        """`atoms`, symmetric around 0."""

    def logits(self, features: Tensor) -> Tensor:
        """`[L, D] -> [L, K, bins]`, in at least float32."""
        logits = self.linear(features).unflatten(-1, (self.output_dim, self.bins))
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _mean(self, features: Tensor) -> Tensor:
        """`[L, D] -> [L, K]`, the mean of the predicted distribution, on the axis of `atoms`."""
        p = self.logits(features).softmax(-1)
        # Each atom with its mirror image: what cancels does so exactly, and a new head predicts exactly 0.
        # Not a matrix product: under autocast that would be taken in half precision.
        return 0.5 * ((p - p.flip(-1)) * self.atoms.to(p.device, p.dtype)).sum(-1)

    def _prediction(self, features: Tensor) -> Tensor:
        return self.logits(features)

    def _loss(
        self,
        prediction: Tensor,
        y: Tensor,
        old: Tensor | None,
        clip: float | Tensor | None,
        huber: float | Tensor | None,
    ) -> Tensor:
        if old is not None or clip is not None or huber is not None:
            raise ValueError(f"{type(self).__name__} learns by cross-entropy, which has no value clip or Huber bound")
        y = y.to(prediction.dtype).clamp(-self.limit, self.limit)
        return self._cross_entropy(prediction.log_softmax(-1), y)

    @abstractmethod
    def _cross_entropy(self, log_p: Tensor, y: Tensor) -> Tensor:
        """Of predicted log-probabilities `[..., bins]` against targets `[...]` on the normalized axis."""


class TwoHotValueHead(HistogramHead, FixedAxisHead):
    """DreamerV3's symexp two-hot: bins at `symexp(-20..20)`, cross-entropy against the two neighbours of the target.

    No statistics: the bins cover every magnitude from 1 to 5e8, but at a fixed resolution of a few bins per unit
    around 0, in which small rewards drown. The value is the mean over the bins in reward units; the normalized axis is
    `symlog` of it. Until learning has taken the outermost bins out of play, float32 rounding of their probabilities
    shows in the value, by up to a few units.

    Source: Hafner et al. 2025, "Mastering diverse control tasks through world models", equations 9 and 10.

    Args:
        input_dim, output_dim, beta, epsilon, device, dtype: as in `ValueHead`.
        bins: number of bins per output.
        limit: `symlog` of the largest value that the bins can express.
    """

    transform = SYMLOG

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 1,
        beta: float = 0.98,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bins: int = 255,
        limit: float = 20.0,
    ) -> None:
        super().__init__(input_dim, output_dim, beta, epsilon, device, dtype, bins, limit)

    def _make_atoms(self) -> Tensor:
        return symexp(torch.linspace(-self.limit, self.limit, self.bins, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        return self._mean(features)

    def forward_normalized(self, features: Tensor) -> Tensor:
        return symlog(self._mean(features))

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        raw = self._mean(features)
        return raw.detach(), symlog(raw)

    def _cross_entropy(self, log_p: Tensor, y: Tensor) -> Tensor:
        atoms = self.atoms.to(y.device, y.dtype)
        spacing = 2 * self.limit / (self.bins - 1)
        below = ((y + self.limit) / spacing).long().clamp(0, self.bins - 2)
        low, high = atoms[below], atoms[below + 1]
        # Shares in reward units, so that their mean is the target.
        share = ((symexp(y) - low) / (high - low)).clamp(0.0, 1.0)
        neighbours = log_p.gather(-1, torch.stack((below, below + 1), -1))
        return -(neighbours[..., 0] * (1 - share) + neighbours[..., 1] * share)


class HLGaussValueHead(HistogramHead):
    """The histogram loss: cross-entropy against a Gaussian around the target, cut into bins, on PopArt's axis.

    The bins follow the statistics, hence cover returns of any scale; when statistics move, outputs move with them.
    Targets further than `limit` stds from the mean count as the outermost bin.

    Source: Farebrother et al. 2024, "Stop regressing: training value functions via classification for scalable deep
    RL", section 3.1; Imani and White 2018, "Improving regression performance with distributional losses".

    Args:
        input_dim, output_dim, beta, epsilon, device, dtype: as in `ValueHead`.
        bins: number of bins per output.
        limit: in stds.
        smoothing: standard deviation of the Gaussian, in widths of a bin.
    """

    predicts_normalized = True

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 1,
        beta: float = 0.98,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        bins: int = 101,
        limit: float = 10.0,
        smoothing: float = 0.75,
    ) -> None:
        if not 0.0 < smoothing < math.inf:
            raise ValueError(f"smoothing must be finite and positive, not {smoothing}")
        super().__init__(input_dim, output_dim, beta, epsilon, device, dtype, bins, limit)
        self.smoothing = smoothing

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, smoothing={self.smoothing}"

    def _make_atoms(self) -> Tensor:
        width = 2 * self.limit / self.bins
        return (torch.arange(self.bins, dtype=torch.float64) - (self.bins - 1) / 2) * width

    def forward_normalized(self, features: Tensor) -> Tensor:
        return self._mean(features)

    def _cross_entropy(self, log_p: Tensor, y: Tensor) -> Tensor:
        width = 2 * self.limit / self.bins
        atoms = self.atoms.to(y.device, y.dtype)
        edges = torch.cat((atoms - width / 2, atoms[-1:] + width / 2))
        cdf = torch.special.erf((edges - y.unsqueeze(-1)) / (math.sqrt(2.0) * self.smoothing * width))
        mass = cdf.diff(dim=-1) / (cdf[..., -1:] - cdf[..., :1])
        return -(mass * log_p).sum(-1)
