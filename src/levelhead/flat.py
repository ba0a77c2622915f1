"""Parameters as views of one flat tensor, so that clipping and optimising touch one tensor per group."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def flatten(parameters: Sequence[nn.Parameter]) -> nn.Parameter:
    """Moves parameters of one dtype and device into a flat tensor; they become views of it, their gradients likewise.

    The parameters stay the objects they were, so modules need not know. From now on gradients accumulate in place:
    zero the flat gradient, never set one to None.

    Returns:
        The flat parameter, with its gradient allocated.
    """
    with torch.no_grad():
        flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in parameters]))
        flat.grad = torch.zeros_like(flat)
        offset = 0
        for p in parameters:
            end = offset + p.numel()
            p.data = flat.data[offset:end].view_as(p)
            p.grad = flat.grad[offset:end].view_as(p)
            offset = end
    return flat


def clip_gradient_(flat: nn.Parameter, max_norm: float) -> Tensor:
    """Scales the gradient down to `max_norm` where it is longer, in place; its norm from before, 0-d."""
    assert flat.grad is not None
    norm = torch.linalg.vector_norm(flat.grad)
    flat.grad.mul_((max_norm / norm).clamp(max=1.0))
    return norm
