"""Returns in native code."""

from dataclasses import dataclass

import torch
from torch import Tensor

from levelhead import native
from levelhead.estimators import GAE, Estimator
from levelhead.native.plan import Returns
from levelhead.rollout import Rollout


@dataclass(frozen=True)
class NativeGAE(GAE):
    """`GAE` in one pass over the rows; torch takes over for other numbers than float32, and on other devices."""

    def _estimate(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        floats = rollout.reward, rollout.value, rollout.next_value
        if any(x.dtype != torch.float32 or x.device.type != "cpu" for x in floats):
            return super()._estimate(rollout)
        given = [x.contiguous() for x in (*floats, rollout.terminated, rollout.truncated, rollout.valid)]
        answers = torch.empty_like(given[0]), torch.empty_like(given[0])
        steps, columns = given[0].shape
        places, results = [x.data_ptr() for x in given], [x.data_ptr() for x in answers]
        native.estimate(Returns(*places, self.gamma, self.lam, steps, columns, *results))
        return answers


def natively(estimator: Estimator) -> Estimator:
    """The same estimator, in native code if there is some for it."""
    if type(estimator) is not GAE or not native.available():
        return estimator
    return NativeGAE(estimator.gamma, estimator.baseline, estimator.credit, estimator.lam)
