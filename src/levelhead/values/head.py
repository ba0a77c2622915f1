"""The protocol of all value heads, and what the scalar ones share."""

import math
import weakref
from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from levelhead.numerics import Moments, Reduce
from levelhead.values.links import Links, Optimizer, Tracked, locate, rescale_moments
from levelhead.values.loss import value_loss
from levelhead.values.statistics import STATISTICS, Movement, TargetStatistics


class ValueHead(TargetStatistics, ABC):
    """The last layer of a value network: features `[L, D]` to values `[L, K]`, L being any leading shape.

    Two axes: *raw* values are in reward units, *normalized* ones live where the loss is taken. Subclasses differ in
    what `forward_normalized` and `update` do; a caller never needs to ask which one it holds. Their own buffers and
    parameters are there from the beginning and written in place, so that a trainer can take a faulty rollout back.

    A new head predicts 0 in any units: its last layer is zero.

    Args:
        input_dim: D, the number of features.
        output_dim: K, the number of values; each has statistics of its own.
        beta: fraction of the old statistics that an update keeps; some sources call `1 - beta` beta.
        epsilon: added to the variance wherever a std is taken; any value but 0 gives up the scale promise.
        device, dtype: of the layer. Statistics are float64 always.
    """

    linear: nn.Linear
    has_statistics: ClassVar[bool] = True
    """Whether mean and std ever move."""
    predicts_normalized: ClassVar[bool] = False
    """Whether the layer predicts on the axis of the statistics, so that neither it nor its loss sees a scale."""
    preserves: ClassVar[bool] = False
    """Whether outputs stay in reward units where statistics move, once there was a scale to preserve."""
    squared: ClassVar[bool] = True
    """Whether the loss is a squared error, which takes a value clip and Huber's bound."""
    limit: float = math.inf
    """The largest magnitude on the normalized axis that the head can express."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int = 1,
        beta: float = 0.98,
        epsilon: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if input_dim < 1:
            raise ValueError(f"input_dim must be at least 1, not {input_dim}")
        super().__init__(output_dim, beta, epsilon)
        self.input_dim = input_dim
        self.linear = nn.Linear(input_dim, output_dim, dtype=dtype)
        ValueHead.reset_parameters(self)
        self._links = Links()
        if device is not None:
            self.to(device)

    def extra_repr(self) -> str:
        return f"input_dim={self.input_dim}, {super().extra_repr()}"

    def reset_parameters(self) -> None:
        """Forgets everything. A layer of zeros predicts 0 in any units; a random one would drown small rewards."""
        self.reset_statistics()
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @property
    def scale_free(self) -> bool:
        """Whether targets multiplied by a power of two train the same network, bit for bit."""
        return self.predicts_normalized and self.epsilon == 0

    # -- prediction ----------------------------------------------------------------------------------------------

    @abstractmethod
    def forward_normalized(self, features: Tensor) -> Tensor:
        """`[L, D] -> [L, K]`, on the axis where the loss is taken."""

    def forward(self, features: Tensor) -> Tensor:
        """`[L, D] -> [L, K]`, in reward units and at least float32."""
        return self.denormalize(self.forward_normalized(features))

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Raw and normalized values from one pass; the raw ones carry no gradient."""
        z = self.forward_normalized(features)
        return self.denormalize(z.detach()), z

    # -- learning ------------------------------------------------------------------------------------------------

    def loss(
        self,
        features: Tensor,
        targets: Tensor,
        *,
        task: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        old_values: Tensor | None = None,
        clip: float | Tensor | None = None,
        huber: float | Tensor | None = None,
    ) -> Tensor:
        """Unreduced loss in the head's own loss space, in `targets`' shape: `(z - y)^2`, or a cross-entropy.

        Args:
            features: `[L, D]`.
            targets: raw, `[L]` where K = 1 or `task` is given, else `[L, K]` (K = 1 accepts both).
            task: `[L]` int64, the output each target belongs to.
            mask: bool, `[L]` or `targets`' shape; masked entries may hold NaN, and their loss is 0.
            weights: multiply the loss; `[L]` or `targets`' shape.
            old_values: raw values from before the update, `targets`' shape; re-expressed under today's statistics.
            clip: width of PPO's value clip on the normalized axis.
            huber: error on the normalized axis from which the loss grows in proportion to it.

        Raises:
            ValueError: wrong shapes, as nothing broadcasts; or a clip or `huber` for a head that takes none.
        """
        if old_values is not None and old_values.shape != targets.shape:
            raise ValueError(f"old values {tuple(old_values.shape)} don't fit targets {tuple(targets.shape)}")
        self._check_layout(targets, task)
        if mask is not None:
            mask = self._over(targets, task, "mask", mask)
            task = None if task is None else torch.where(mask, task, 0)
        y = self.normalize(_fill(targets, mask), task=task)
        old = None if old_values is None else self.normalize(_fill(old_values, mask), task=task)
        loss = self.loss_normalized(features, y, task=task, old=old, clip=clip, huber=huber)
        if weights is not None:
            loss = loss * _fill(self._over(targets, task, "weights", weights), mask).to(loss.dtype)
        return _fill(loss, mask)

    def loss_normalized(
        self,
        features: Tensor,
        y: Tensor,
        *,
        task: Tensor | None = None,
        old: Tensor | None = None,
        clip: float | Tensor | None = None,
        huber: float | Tensor | None = None,
    ) -> Tensor:
        """`loss` for targets and old values that `normalize` has been applied to already.

        Statistics move once per rollout while a target is visited in every epoch, so a trainer normalizes once.
        """
        prediction, leading = self._prediction(features), features.shape[:-1]
        axis = len(leading)
        shape = (*leading, self.output_dim)
        if task is not None:
            if task.shape != leading:
                raise ValueError(f"task ids {tuple(task.shape)} don't fit features {tuple(features.shape)}")
            index = task.view(*leading, *(1,) * (prediction.ndim - axis))
            prediction, shape = prediction.take_along_dim(index, axis).squeeze(axis), leading
        elif self.output_dim == 1 and y.shape == leading:
            prediction, shape = prediction.squeeze(axis), leading
        if y.shape != shape:
            raise ValueError(f"targets {tuple(y.shape)} don't fit values {tuple(shape)}; nothing broadcasts")
        return self._loss(prediction, y, old, clip, huber)

    def _prediction(self, features: Tensor) -> Tensor:
        """What the loss reads: `[L, K]`, or `[L, K, ...]` where a value is more than a number."""
        return self.forward_normalized(features)

    def _loss(
        self,
        prediction: Tensor,
        y: Tensor,
        old: Tensor | None,
        clip: float | Tensor | None,
        huber: float | Tensor | None,
    ) -> Tensor:
        """Loss of each entry of `y`, given the prediction for it."""
        return value_loss(prediction, y, old, clip, huber)

    # -- statistics ----------------------------------------------------------------------------------------------

    def update(
        self,
        targets: Tensor,
        *,
        task: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """Moves the statistics towards those of `targets`; a head that preserves outputs then rewrites its layer.

        Outputs are preserved at every call, the first included: a new head goes on predicting 0, and has the way to the
        targets to learn. `observe` spares it that.

        Args:
            targets: raw, `[L]` where K = 1 or `task` is given, else `[L, K]` (K = 1 accepts both).
            task: `[L]` int64, the output each target belongs to; an output without samples is left alone.
            mask: bool, `[L]` or `targets`' shape; False entries don't count and may hold NaN.
            weights: not negative, `[L]` or `targets`' shape.
            reduce: sums a tensor over ranks; needed where a process group exists.

        Raises:
            ValueError: wrong shape, or a non-finite target (the output is named); nothing is changed then.
            RuntimeError: a process group exists and `reduce` is missing.
        """
        before = self._checked_move(targets, task, mask, weights, reduce)
        self._moved(before, preserve=torch.ones_like(self.scaled))

    def adopt(
        self,
        targets: Tensor,
        *,
        task: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> None:
        """As `update`, but statistics alone: for a head that has learned nothing yet, and so nothing to preserve."""
        before = self._checked_move(targets, task, mask, weights, reduce)
        self._moved(before, preserve=torch.zeros_like(self.scaled))

    def observe(
        self,
        targets: Tensor,
        *,
        task: Tensor | None = None,
        mask: Tensor | None = None,
        weights: Tensor | None = None,
        reduce: Reduce | None = None,
    ) -> Tensor:
        """What a trainer calls: `update`, or `adopt` for outputs that have not seen a real spread yet.

        A layer that was trained elsewhere and put into a new head is not to be adopted over: `update` once first.

        Never waits for the device, hence reads no values: masks, weights and task ids are trusted, and a
        non-finite target is reported rather than raised.

        Returns:
            bool `[K]`: False for outputs that were left as they were because a target was not finite.
        """
        return self.observe_moments(self._measure(targets, task, self._weight(targets, task, mask, weights), reduce))

    def observe_moments(self, batch: Moments) -> Tensor:
        """`observe` for whoever knows the moments of the targets by now: one for each output, merged over ranks."""
        batch = Moments(*(x.to(self.mean.device) for x in batch))
        before = self._move(batch)
        self._moved(before, preserve=before.scaled)
        return batch.finite

    def _moved(self, before: Movement, preserve: Tensor) -> None:
        """Lets layer and mirrors follow the statistics; `preserve` is bool `[K]`."""
        self._rewrite(before.mean, before.std, preserve)
        for link in self._links.mirrors:
            other = link()
            if other is not None:
                other._follow(self, preserve)

    def _rewrite(self, mean: Tensor, std: Tensor, preserve: Tensor) -> None:
        """Adapts the layer, in place, to statistics that moved from `mean` and `std`, where `preserve` says so.

        Most heads let their outputs move along with the statistics.
        """

    # -- companions ----------------------------------------------------------------------------------------------

    def track(self, optimizer: Optimizer) -> Self:
        """Whenever the layer is rewritten, rescales the optimiser's moments of it too, from now on.

        Otherwise steps would be off by the ratio of old to new std until the moments have forgotten. The link is weak,
        and not part of copies of the head. Where the optimiser holds the layer is looked up once, here: track last,
        after parameters have been moved or flattened.

        Raises:
            ValueError: the optimiser doesn't hold the layer, neither by identity nor inside a flat tensor.
        """
        # Anew if it is there already, lest its moments be rescaled twice.
        self._links.optimizers = [t for t in self._links.optimizers if t.optimizer() not in (None, optimizer)]
        locations = [locate(parameter, optimizer) for parameter in (self.linear.weight, self.linear.bias)]
        self._links.optimizers.append(Tracked(weakref.ref(optimizer), locations))
        return self

    def mirror(self, other: "ValueHead") -> Self:
        """Keeps a target network's head on this head's axis from now on.

        At every update `other` takes over these statistics; where outputs are preserved, its layer is rewritten too,
        from its own old statistics. The link is weak, and not part of copies of the head. Mirrors of a mirror don't
        follow.

        Raises:
            ValueError: `other` is this very head, of another kind, or has other outputs, bins or transform.
        """
        if other is self or not self._fits(other):
            raise ValueError(f"a mirror is another {type(self).__name__} with {self.output_dim} outputs, made alike")
        self._links.mirrors.append(weakref.ref(other))
        return self

    def _fits(self, other: "ValueHead") -> bool:
        """Whether `other` can live on this head's axis."""
        return type(other) is type(self) and other.output_dim == self.output_dim

    def _follow(self, leader: "ValueHead", preserve: Tensor) -> None:
        mean, std = self.mean.clone(), self.std.clone()
        for name in STATISTICS:
            self.get_buffer(name).copy_(leader.get_buffer(name))
        self._rewrite(mean, std, preserve)

    def _rescale_moments(self, scale: Tensor) -> None:
        for link, (weight, bias) in self._links.optimizers:
            optimizer = link()
            if optimizer is not None:
                rescale_moments(self.linear.weight, optimizer, weight, scale.unsqueeze(1))
                rescale_moments(self.linear.bias, optimizer, bias, scale)


def _fill(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` with 0 where it is masked out, so that a NaN there reaches neither the loss nor a gradient."""
    return x if mask is None else torch.where(mask, x, 0.0)
