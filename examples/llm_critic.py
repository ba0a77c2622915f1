"""A critic for a language model: a value for every token, from hidden states in bfloat16, with padded sequences.

The trunk is a tiny transformer with random weights, and the targets follow the tokens by a rule of their own, where GAE
would give them in earnest; shapes, dtypes and the mask are those of the real thing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import levelhead as lh

VOCABULARY, TOKENS, HIDDEN = 64, 48, 64


@dataclass(frozen=True)
class Batch:
    tokens: Tensor
    """`[B, T]` int64."""
    mask: Tensor
    """`[B, T]` bool: True for tokens, False for the padding after them."""
    targets: Tensor
    """`[B, T]`, NaN where there is padding."""


@dataclass(frozen=True)
class Outcome:
    explained: float
    """Share of the targets' variance that is explained, over the tokens of sequences never seen."""
    mean: float
    """Of the head's statistics."""
    std: float
    changed_by_padding: float
    """Largest difference that padding made to statistics, loss or gradient, relative to them."""


class Trunk(nn.Module):
    """Tokens `[B, T]` to hidden states `[B, T, H]`. Attention is causal, so no token sees the padding after it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        layer = nn.TransformerEncoderLayer(HIDDEN, 4, 2 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(HIDDEN), enable_nested_tensor=False)

    def forward(self, tokens: Tensor) -> Tensor:
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).triu(1)
        return self.layers(self.embedding(tokens), mask=later, is_causal=True)


def draw(scores: Tensor, sequences: int = 32) -> Batch:
    """Random sequences; the target of a token is the mean score of the tokens up to it."""
    tokens = torch.randint(VOCABULARY, (sequences, TOKENS))
    mask = torch.arange(TOKENS) < torch.randint(8, TOKENS + 1, (sequences, 1))
    targets = scores[tokens].cumsum(1) / torch.arange(1, TOKENS + 1)
    return Batch(tokens, mask, targets.where(mask, torch.nan))


def loss_over_tokens(head: lh.ValueHead, hidden: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Mean loss over the tokens: entries of padding are 0, but `.mean()` would count them."""
    # The head stays in float32: a value in the units of the targets needs more than the three digits of bfloat16.
    return head.loss(hidden.float(), targets, mask=mask).sum() / mask.sum()


def effect_of_padding(head: lh.PopArtValueHead, hidden: Tensor, batch: Batch) -> float:
    """Compares two more updates, one on the padded batch and one on its tokens alone; leaves the head as it was."""
    state = {name: x.clone() for name, x in head.state_dict().items()}
    seen = []
    for h, y, mask in (
        (hidden, batch.targets, batch.mask),
        (hidden[batch.mask], batch.targets[batch.mask], torch.ones(int(batch.mask.sum()), dtype=torch.bool)),
    ):
        head.load_state_dict(state)
        head.observe(y, mask=mask)
        loss = loss_over_tokens(head, h, y, mask)
        gradient = torch.autograd.grad(loss, head.linear.weight)[0]
        seen.append((head.mean.clone(), head.std.clone(), loss, gradient))
    head.load_state_dict(state)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(*seen, strict=True))


def run(steps: int = 300, scale: float = 1000.0, learning_rate: float = 1e-3, seed: int = 0) -> Outcome:
    torch.manual_seed(seed)
    scores = scale * (5 + torch.randn(VOCABULARY))
    trunk, head = Trunk().bfloat16(), lh.PopArtValueHead(HIDDEN)
    optimizer = torch.optim.AdamW([*trunk.parameters(), *head.parameters()], learning_rate)
    head.track(optimizer)
    for _ in range(steps):
        batch = draw(scores)
        head.observe(batch.targets, mask=batch.mask)  # padding neither counts nor may it be anything in particular
        optimizer.zero_grad()
        loss_over_tokens(head, trunk(batch.tokens), batch.targets, batch.mask).backward()
        optimizer.step()

    unseen = draw(scores, sequences=128)
    with torch.no_grad():
        hidden = trunk(unseen.tokens)
        value = head(hidden.float()).squeeze(-1)  # [B, T], in the units of the targets
    explained = lh.explained_variance(value, unseen.targets, unseen.mask)
    return Outcome(explained.item(), head.mean.item(), head.std.item(), effect_of_padding(head, hidden, unseen))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps, 32 sequences each (default: 300)")
    parser.add_argument("--scale", type=float, default=1000.0, help="multiplies the targets (default: 1000)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of AdamW (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    outcome = run(args.steps, args.scale, args.learning_rate, args.seed)
    print(f"statistics of the targets: mean {outcome.mean:.1f}, std {outcome.std:.1f}")
    print(f"share of the variance explained, over tokens of unseen sequences: {outcome.explained:.3f}")
    print(f"largest change of statistics, loss or gradient by padding full of NaN: {outcome.changed_by_padding:.1e}")


if __name__ == "__main__":
    main()
