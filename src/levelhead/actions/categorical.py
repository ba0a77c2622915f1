"""One choice out of n."""

import torch
from torch import Tensor, nn

from levelhead.actions.head import ActionHead, Evaluation
from levelhead.initialization import orthogonal


class CategoricalHead(ActionHead):
    """A categorical distribution over n actions; its parameters are the logits `[L, n]`.

    Args:
        input_dim: number of features.
        actions: n, the number of choices.
        start: the environment's name of the first choice.
    """

    def __init__(self, input_dim: int, actions: int, start: int = 0) -> None:
        super().__init__()
        # A nearly uniform start: exploration is not biased by the initialisation.
        self.linear = orthogonal(nn.Linear(input_dim, actions), gain=0.01)
        self.start = start

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Standard Gumbel, `[*shape, n]`: the argmax of logits + noise is a sample."""
        exponential = torch.empty(*shape, self.linear.out_features, device=generator.device)
        return -exponential.exponential_(generator=generator).log_()

    def sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.linear(features)
        return (logits + noise).argmax(-1), logits

    def mode(self, features: Tensor) -> Tensor:
        return self.linear(features).argmax(-1)

    def evaluate(self, features: Tensor, action: Tensor) -> Evaluation:
        logits = self.linear(features)
        log_probs = logits.log_softmax(-1)
        log_prob = log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)
        return Evaluation(log_prob, -(log_probs.exp() * log_probs).sum(-1), logits)

    def log_prob(self, parameters: Tensor, action: Tensor) -> Tensor:
        return parameters.log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def kl(self, old: Tensor, new: Tensor) -> Tensor:
        p, q = old.log_softmax(-1), new.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1)

    def to_environment(self, action: Tensor) -> Tensor:
        return action + self.start if self.start else action
