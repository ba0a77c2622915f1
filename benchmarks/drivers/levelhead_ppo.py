"""levelhead on a task: prints one RESULT line. Usage: levelhead_ppo.py TASK SEED"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import TASKS, Meter

import levelhead as lh
from levelhead.schedules import Schedule, constant

task, seed = TASKS[sys.argv[1]], int(sys.argv[2])
meter = Meter()


advance = lh.ClipObjective.advance


def watched(objective: lh.ClipObjective, progress: float) -> None:
    """Ticks when an iteration begins. (An objective of another class would keep native code away.)"""
    advance(objective, progress)
    meter.iteration(round(progress * task.steps))


lh.ClipObjective.advance = watched

config = lh.Config(
    task.env_id,
    total_steps=task.steps,
    seed=seed,
    num_envs=task.num_envs,
    num_steps=task.num_steps,
    checkpoint_every=0,
    network=lh.NetworkConfig(normalize_observation=task.normalize_observation),
    ppo=lh.PPOConfig(
        gamma=task.gamma,
        epochs=task.epochs,
        minibatches=task.minibatches,
        clip_range=constant(0.2),
        entropy_coef=constant(task.entropy_coef),
        value_clip=constant(0.2),
    ),
    optimizer=lh.OptimizerConfig(learning_rate=Schedule(task.learning_rate, 0.0)),
)
with tempfile.TemporaryDirectory() as directory:
    run = lh.train(task.env_id, config=config, run_dir=directory)
    meter.iteration(run.step)
    last = json.loads((run.directory / "metrics.jsonl").read_text().splitlines()[-1])
    meter.returns.append(last["rollout/ep_rew_mean"])
meter.finish()
