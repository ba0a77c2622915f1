"""What every task says to Stable-Baselines3 and to sb3-contrib alike."""

from typing import TYPE_CHECKING, Any

import torch
from scale_task import between

if TYPE_CHECKING:
    from peer_task import PeerTask
    from scale_task import ScaleTask


def settings(task: "ScaleTask | PeerTask") -> dict[str, Any]:
    """Arguments of a model; those of its policy are `layers`.

    SB3 moves schedules after a rollout, one later than levelhead and CleanRL; here they are shifted to agree.
    """
    return {
        "learning_rate": lambda left: between(task.learning_rate, 1 - left - task.rollout / task.steps),
        "n_steps": task.num_steps,
        "batch_size": task.rollout // task.minibatches,
        "n_epochs": task.epochs,
        "gamma": task.gamma,
        "gae_lambda": task.lam,
        "clip_range": task.clip_range,
        "vf_coef": task.value_coef,
        "max_grad_norm": task.max_grad_norm,
        "device": "cpu",
    }


def layers(task: "ScaleTask | PeerTask") -> dict[str, Any]:
    """Arguments of the policy: the layers of actor and of critic."""
    return {"net_arch": {"pi": list(task.hidden), "vf": list(task.hidden)}, "activation_fn": torch.nn.Tanh}
