"""Running mean and standard deviation of value targets, one pair per output.

With `w_t = (1 - beta_t) / (1 - prod beta_i)` the moving averages are debiased exactly, for any schedule of beta, and
the centred form avoids the cancellation of `E[y^2] - E[y]^2`:

    d = m_batch - mean;   mean += w d;   var = (1 - w) (var + w d^2) + w v_batch
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from levelhead.numerics import ROUNDING, Moments, Reduce, local, moments

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By size, what a floating-point number is shown as."""

STATISTICS = ("mean", "var", "std", "count", "retained", "scaled")


class Movement(NamedTuple):
    """What the statistics were before an update, each `[K]`."""

    mean: Tensor
    std: Tensor
    scaled: Tensor
    """bool: whether the output had seen a real spread."""


class TargetStatistics(nn.Module):
    """Mean, variance and std of targets as buffers, and the maps to and from the normalised axis.

    One (mean, std) pair serves update, normalize and denormalize alike. Statistics are float64 and int64 whatever the
    module's dtype, are written in place, and follow the module to its device (staying on the CPU where the device
    has no float64).

    Args:
        output_dim: K, the number of outputs (tasks) with statistics of their own.
        beta: fraction of the old statistics that an update keeps, in [0, 1). Some papers and code bases call
            `1 - beta` beta. May be set anew at any time; debiasing stays exact.
        epsilon: added to the variance wherever a std is taken. Any value but 0 gives up the scale promise:
            targets whose variance is not far above it are no longer levelled.
        device: where the statistics live.

    Raises:
        ValueError: an argument is out of range.
    """

    mean: Tensor
    var: Tensor
    std: Tensor
    count: Tensor
    retained: Tensor
    """The product of the betas so far: what debiasing needs, since beta may follow a schedule."""
    scaled: Tensor
    """Whether the output has ever seen a spread that is more than rounding noise."""
    _beta: Tensor

    def __init__(
        self,
        output_dim: int = 1,
        beta: float = 0.98,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if output_dim < 1:
            raise ValueError(f"output_dim must be at least 1, not {output_dim}")
        if not 0.0 <= epsilon < float("inf"):
            raise ValueError(f"epsilon must be finite and not negative, not {epsilon}")
        self.output_dim = output_dim
        self.epsilon = epsilon
        k, f64 = output_dim, torch.float64
        for name in ("mean", "var", "std", "retained"):
            self.register_buffer(name, torch.empty(k, dtype=f64))
        self.register_buffer("count", torch.empty(k, dtype=torch.int64))
        self.register_buffer("scaled", torch.empty(k, dtype=torch.bool))
        self.register_buffer("_beta", torch.empty((), dtype=f64), persistent=False)
        self.beta = beta
        self.reset_statistics()
        if device is not None:
            self.to(device)

    @torch.no_grad()
    def reset_statistics(self) -> None:
        """Mean 0, std 1, nothing seen."""
        for buffer, value in ((self.mean, 0), (self.var, 1), (self.std, 1), (self.count, 0), (self.retained, 1)):
            buffer.fill_(value)
        self.scaled.fill_(False)
        self._beta.fill_(self.beta)

    @property
    def beta(self) -> float:
        """The retention: the fraction of the old statistics that an update keeps; no part of the state."""
        return self._retention

    @beta.setter
    def beta(self, value: float) -> None:
        if not 0.0 <= value < 1.0:
            raise ValueError(f"beta, the fraction of old statistics kept, must be in [0, 1), not {value}")
        self._retention = float(value)
        self._beta.fill_(value)

    def extra_repr(self) -> str:
        return f"output_dim={self.output_dim}, beta={self.beta}, epsilon={self.epsilon}"

    # -- the axis ------------------------------------------------------------------------------------------------

    def normalize(self, x: Tensor, *, task: Tensor | None = None) -> Tensor:
        """`(x - mean) / std`, computed in float64, answered in `x`'s shape and dtype.

        Args:
            x: raw values, `[L]` where K = 1 or `task` is given, else `[L, K]` (K = 1 accepts both).
            task: `[L]` int64, the output each sample belongs to.

        Raises:
            ValueError: any other shape; nothing broadcasts.
        """
        mean, std = self._pick(x, task)
        return ((x.to(mean.device) - mean) / std).to(x.device, x.dtype)

    def denormalize(self, z: Tensor, *, task: Tensor | None = None) -> Tensor:
        """`z * std + mean`, the inverse of `normalize`; computed in float64, answered in at least float32."""
        mean, std = self._pick(z, task)
        dtype = torch.promote_types(z.dtype, torch.float32)
        return (z.to(mean.device) * std + mean).to(z.device, dtype)

    def _pick(self, x: Tensor, task: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and std that broadcast exactly over `x`, whose shape is checked."""
        if not x.is_floating_point():
            raise ValueError(f"values must be floating-point, not {x.dtype}")
        self._check_layout(x, task)
        if task is not None:
            index = task.to(self.mean.device).reshape(-1)
            return self.mean.index_select(0, index).view(x.shape), self.std.index_select(0, index).view(x.shape)
        return (self.mean, self.std) if x.ndim else (self.mean[0], self.std[0])

    # -- moving --------------------------------------------------------------------------------------------------

    def _measure(
        self,
        targets: Tensor,
        task: Tensor | None,
        weight: Tensor,
        reduce: Reduce | None,
    ) -> Moments:
        """The batch's own statistics per output, over all ranks; reads no values, so it doesn't wait for the device."""
        if reduce is None:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                raise RuntimeError(
                    "a process group exists, and each rank would keep statistics of its own: pass"
                    " reduce=(a function that sums a tensor over ranks), or reduce=levelhead.local to opt out"
                )
            reduce = local
        return moments(*self._columns(targets.detach(), task, weight), reduce)

    def _move(self, batch: Moments) -> Movement:
        """Moves the statistics towards a batch's, in place; outputs without (finite) samples are left alone."""
        before = Movement(self.mean.clone(), self.std.clone(), self.scaled.clone())
        self._absorb(batch, reached=batch.finite & (batch.weight > 0))
        return before

    def _absorb(self, batch: Moments, reached: Tensor) -> None:
        retained = self.retained * self._beta
        step = (1.0 - self._beta) / (1.0 - retained)
        delta = batch.mean - self.mean
        move = step * delta
        mean = self.mean + move
        var = torch.lerp(self.var + move * delta, batch.var, step)

        spread, magnitude = (var + self.epsilon).sqrt(), mean.abs()
        real = spread > ROUNDING * magnitude
        stand_in = torch.where(self.scaled, self.std, torch.where(magnitude != 0, magnitude, 1.0))
        std = torch.where(real, spread, stand_in)
        for buffer, new in (
            (self.mean, mean),
            (self.var, var),
            (self.std, std),
            (self.retained, retained),
            (self.scaled, self.scaled | real),
            (self.count, self.count + 1),
        ):
            torch.where(reached, new, buffer, out=buffer)

    # -- shapes --------------------------------------------------------------------------------------------------

    def _check_layout(self, x: Tensor, task: Tensor | None) -> None:
        """Whether `x` is [L] or [L, K] as it should be."""
        k = self.output_dim
        if task is not None:
            if task.shape != x.shape:
                raise ValueError(
                    f"with task ids of shape {tuple(task.shape)}, values must have it too: {tuple(x.shape)}"
                )
            if task.dtype != torch.int64:
                raise ValueError(f"task ids must be int64, not {task.dtype}")
        elif k > 1 and (x.ndim == 0 or x.shape[-1] != k):
            raise ValueError(
                f"expected [..., {k}], or [...] with task ids, for a head of {k} outputs; got {tuple(x.shape)}"
            )

    def _over(self, targets: Tensor, task: Tensor | None, name: str, given: Tensor) -> Tensor:
        """A mask or weights of shape [L] or `targets`' shape, in the latter."""
        if name == "mask" and given.dtype != torch.bool:
            raise ValueError(f"mask must be bool, not {given.dtype}; sample weights go into weights=")
        if given.shape == targets.shape:
            return given
        if task is None and targets.shape == (*given.shape, self.output_dim):
            return given.unsqueeze(-1).expand(targets.shape)
        raise ValueError(f"{name} {tuple(given.shape)} doesn't fit targets {tuple(targets.shape)}")

    def _weight(self, targets: Tensor, task: Tensor | None, mask: Tensor | None, weights: Tensor | None) -> Tensor:
        """What each target weighs, float64 in `targets`' shape; 0 where it is masked out, whatever stands there."""
        self._check_layout(targets, task)
        weight = torch.ones(targets.shape, dtype=torch.float64, device=self.mean.device)
        if weights is not None:
            weight = self._over(targets, task, "weights", weights.detach()).to(weight)
        if mask is None:
            return weight
        return torch.where(self._over(targets, task, "mask", mask).to(weight.device), weight, 0)

    def _columns(self, targets: Tensor, task: Tensor | None, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and their weights as `[M, K]`."""
        targets = targets.to(weight.device)
        if task is None:
            return targets.reshape(-1, self.output_dim), weight.reshape(-1, self.output_dim)
        belongs = task.to(weight.device).reshape(-1, 1) == torch.arange(self.output_dim, device=weight.device)
        return targets.reshape(-1, 1).expand(belongs.shape), torch.where(belongs, weight.reshape(-1, 1), 0)

    def _checked_move(
        self,
        targets: Tensor,
        task: Tensor | None,
        mask: Tensor | None,
        weights: Tensor | None,
        reduce: Reduce | None,
    ) -> Movement:
        """Moves the statistics, or raises and changes nothing; waits for the device, once."""
        weight = self._weight(targets, task, mask, weights)
        checks: dict[str, Tensor] = {}
        if weights is not None:
            checks["weights must be finite and not negative"] = ((weight >= 0) & weight.isfinite()).all()
        if task is not None:
            known = (task >= 0) & (task < self.output_dim)
            checks[f"task ids must lie in 0..{self.output_dim - 1}"] = (known.to(weight.device) | (weight == 0)).all()
        # Before anything is raised, so that no other rank is left waiting.
        batch = self._measure(targets, task, weight, reduce)
        for k, finite in enumerate(batch.finite.unbind()):
            checks[
                f"non-finite target for output {k}; statistics left as they were. Exclude such samples with mask="
            ] = finite
        allowed = _require(checks)
        return self._move(batch._replace(weight=torch.where(allowed, batch.weight, 0.0)))

    # -- dtype and device ----------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "TargetStatistics":
        # Module.to() and .half() cast every floating buffer: hold them back and show them as integers, which are moved
        # but never cast.
        held = {name: x for name, x in self._buffers.items() if x is not None}
        for name in held:
            self._buffers[name] = None
        super()._apply(fn, recurse)
        for name, buffer in held.items():
            moved = fn(buffer.view(INTEGERS[buffer.element_size()]) if buffer.is_floating_point() else buffer)
            stays = moved.device in (buffer.device, torch.device("mps", 0))
            self._buffers[name] = buffer if stays else moved.view(buffer.dtype)
        return self


def _require(checks: Mapping[str, Tensor]) -> Tensor:
    """Raises where a 0-d bool is False, with what it is listed under; waits for the device once. 0-d, all of them.

    Code that is being compiled cannot branch on a value: on a CPU the checks become part of it and raise a
    RuntimeError, though perhaps after later writes, for which the answer is there. On a GPU they would take the whole
    process down, and are left out, as while a CUDA graph is captured.
    """
    holds = torch.stack(list(checks.values()))
    if torch.compiler.is_compiling():
        if holds.device.type == "cpu":
            for message, held in checks.items():
                torch._assert_async(held, message)  # pyright: ignore[reportPrivateImportUsage]  # the one way that compiles
    elif not (holds.is_cuda and torch.cuda.is_current_stream_capturing()):
        for message, held in zip(checks, holds.tolist(), strict=True):
            if not held:
                raise ValueError(message)
    return holds.all()


class ValueNormalizer(TargetStatistics):
    """The plain mean/std module: `update`, `normalize`, `denormalize`.

    `beta=0` keeps the last batch's statistics alone. Arguments and errors are those of `TargetStatistics`, with
    `beta` first, as this module is mostly used with one output.
    """

    def __init__(
        self,
        beta: float = 0.98,
        output_dim: int = 1,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(output_dim, beta, epsilon, device)

    def update(
        self,
        targets: Tensor,
        *,
        task: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """Moves the statistics towards those of `targets`.

        Args:
            targets: `[L]` where K = 1 or `task` is given, else `[L, K]`.
            task: `[L]` int64, the output each target belongs to.
            mask: bool, `[L]` or `targets`' shape; False entries don't count and may hold NaN.
            weights: not negative, `[L]` or `targets`' shape.
            reduce: sums a tensor over ranks; needed where a process group exists.

        Raises:
            ValueError: wrong shape, or a non-finite target; nothing is changed then.
            RuntimeError: a process group exists and `reduce` is missing.
        """
        self._checked_move(targets, task, mask, weights, reduce)
