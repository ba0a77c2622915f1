"""levelhead with the environment's preset, rewards multiplied. Usage: levelhead_scale.py TASK SCALE SEED HEAD

HEAD is a name of a value head. Of the task only environment and steps are read: the rest came from the preset.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scale_task import arguments, finish, greedy_return

import levelhead as lh

task, scale, seed, head = arguments()
with tempfile.TemporaryDirectory() as directory:
    try:
        run = lh.train(
            task.env_id,
            total_steps=task.steps,
            reward_scale=scale,
            seed=seed,
            value=head,
            run_dir=directory,
            device="cpu",
        )
    except lh.TrainingFault as error:
        finish(None, str(error).splitlines()[0])
    else:
        if run.interrupted:
            raise SystemExit("interrupted")
        finish(greedy_return(task.env_id, run.policy.act))
