"""PureJaxRL on a task: prints one RESULT line. Usage: purejaxrl_ppo.py TASK SEED

Environments (gymnax's), rollouts and updates are one program of XLA's, which compiles it first; a time limit is an end.
Its file runs with one edit, so that every iteration tells what it did. JAX has as many threads as it takes of itself.
"""

import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax
import numpy as np
from tasks import Meter, arguments

SOURCE = Path(sys.prefix) / "source" / "purejaxrl"
REPORT = "jax.debug.callback(callback, metric)"

task, seed = arguments()
meter = Meter(task)


def note(info: dict[str, Any]) -> None:
    """Of one iteration; arrays are `[T, N]`."""
    meter.returns.extend(np.asarray(info["returned_episode_returns"])[np.asarray(info["returned_episode"])].tolist())
    try:
        meter.iteration((len(meter.marks) + 1) * task.rollout)
    except SystemExit:
        os._exit(0)  # an exception would have to pass through XLA


sys.path.insert(0, str(SOURCE))
# Imported there for environments that no task has.
others = ("brax", "brax.envs", "brax.envs.wrappers", "brax.envs.wrappers.training", "navix")
sys.modules |= {name: MagicMock() for name in others}
text = (SOURCE / "ppo.py").read_text()
if text.count(REPORT) != 1:
    raise SystemExit(f"{SOURCE / 'ppo.py'} has {REPORT!r} {text.count(REPORT)} times; expected once")
script: dict[str, Any] = {"__name__": "ppo", "NOTE": note}
exec(compile(text.replace(REPORT, "jax.debug.callback(NOTE, metric, ordered=True)"), "ppo.py", "exec"), script)
train = script["make_train"](
    {
        "ENV_NAME": task.env_id,
        "NUM_ENVS": task.num_envs,
        "NUM_STEPS": task.num_steps,
        "TOTAL_TIMESTEPS": task.steps,
        "UPDATE_EPOCHS": task.epochs,
        "NUM_MINIBATCHES": task.minibatches,
        "LR": task.learning_rate,
        "ANNEAL_LR": True,
        "GAMMA": task.gamma,
        "GAE_LAMBDA": task.lam,
        "CLIP_EPS": task.clip_range,
        "ENT_COEF": task.entropy_coef,
        "VF_COEF": 2 * task.value_coef,  # of half the squared error
        "MAX_GRAD_NORM": task.max_grad_norm,
        "ACTIVATION": "tanh",
        "DEBUG": True,
    }
)
jax.block_until_ready(jax.jit(train)(jax.random.PRNGKey(seed)))
jax.effects_barrier()
meter.finish()
