"""Features for the critic's head in native code."""

import ctypes

from torch import Tensor

from levelhead import native
from levelhead.accelerate.kept import Kept
from levelhead.accelerate.layout import fits, layers_of, linears, reading_of
from levelhead.accelerate.support import valuing_refusal
from levelhead.critic import Critic
from levelhead.native.plan import Layer
from levelhead.networks import Policy, State
from levelhead.tree import Tree, tree_leaves

ROWS_AT_ONCE = 256
"""So that what layers answer stays in the cache."""


class NativeCritic(Critic):
    """`Critic` in native code; torch takes over whenever `valuing_refusal` has something against it."""

    _now: ctypes.Array[Layer] | None = None

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self._layers = Kept(policy, self._find_layers)

    def start(self) -> None:
        self._now = self._layers()

    def __call__(self, observation: Tree, state: State, begins: Tensor) -> tuple[Tensor, State]:
        given, *others = tree_leaves(observation)
        # Final observations come as environments give them, whatever their space says.
        if self._now is None or others or not fits(given, self._now) or given.shape[:2] != begins.shape:
            return super().__call__(observation, state, begins)
        given = given.contiguous()
        features = self.policy.value_head.linear.weight.new_empty(*begins.shape, self._now[-1].outputs)
        plan = reading_of(self.policy, self._now, min(begins.numel(), ROWS_AT_ONCE), given.dtype)
        native.features(plan, given.data_ptr(), begins.numel(), features.data_ptr())
        return features, state

    def _find_layers(self) -> ctypes.Array[Layer] | None:
        if valuing_refusal(self.policy) is not None:
            return None
        return layers_of([*linears(self.policy.network.shared), *linears(self.policy.network.critic)])
