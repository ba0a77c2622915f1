"""levelhead on a task: prints one RESULT line. Usage: levelhead_ppo.py TASK SEED VARIANT

Values are clipped on the normalised axis. `preset` reads only the environment and the goal from the task: the rest is
what `levelhead train` starts with, number of steps included.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import HIDDEN, Meter, arguments

import levelhead as lh
from levelhead.trainer import Iteration, Trainer

task, seed = arguments()
VARIANTS = {
    "sync": {"threads": 2},
    "torch": {"engine": "torch", "threads": task.threads},
    "compile": {"engine": "compile"},
    "vector": {"threads": 2, "backend": "vector"},
    "bfloat16": {"threads": 2, "backend": "vector"},
    "envpool": {"threads": 2, "backend": "envpool"},
    "halves": {
        "threads": 2,
        "backend": "envpool",
        "double_buffer": True,
        "parallel": lh.ParallelConfig(shards=2),
    },
}
"""What each changes in the config; `bfloat16` is that precision, besides."""

variant = sys.argv[3]
meter = Meter(task)
advance = Trainer.__next__


def watched(trainer: Trainer) -> Iteration:
    iteration = advance(trainer)
    meter.returns = trainer.collector.episodes.returns[0]
    meter.iteration(iteration.step)
    return iteration


Trainer.__next__ = watched

vector = lh.NetworkConfig(actor=HIDDEN, critic=HIDDEN, normalize_observation=task.normalize_observation)
network = lh.preset(task.env_id).network if task.pictures else vector
if variant == "preset":
    config = replace(lh.preset(task.env_id), seed=seed)
else:
    config = lh.Config(
        task.env_id,
        total_steps=task.steps,
        seed=seed,
        num_envs=task.num_envs,
        num_steps=task.num_steps,
        device="cpu",
        checkpoint_every=0,
        network=replace(network, precision="bfloat16" if variant == "bfloat16" else "float32"),
        ppo=lh.PPOConfig(
            gamma=task.gamma,
            lam=task.lam,
            epochs=task.epochs,
            minibatches=task.minibatches,
            clip_range=task.clip_range,
            entropy_coef=task.entropy_coef,
            value_coef=task.value_coef,
            value_clip=task.clip_range,
        ),
        optimizer=lh.OptimizerConfig(
            learning_rate=lh.Schedule(task.learning_rate, 0.0), max_grad_norm=task.max_grad_norm
        ),
        **VARIANTS[variant],
    )
with tempfile.TemporaryDirectory() as directory:
    lh.train(task.env_id, config=config, run_dir=directory)
    meter.finish()
