"""CleanRL's PPO on a task: prints one RESULT line. Usage: cleanrl_ppo.py TASK SEED

cleanrl_files.py says what its files do that the task doesn't ask for. With continuous actions, environments that each
have statistics of their own cost little, but learn worse than one alone.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from cleanrl_files import finished, settings
from tasks import Meter, arguments

torch.set_num_threads(1)
task, seed = arguments()
meter = Meter(task)


def note(infos) -> None:
    if "final_info" in infos:
        final = infos["final_info"]
        meter.returns.extend(final["episode"]["r"][final["_episode"]].tolist())


edits = {
    "rewards[step] = torch": "NOTE(infos); rewards[step] = torch",
    'print("SPS:"': 'METER.iteration(global_step); print("SPS:"',
}
options = {**settings(task, seed), "learning-rate": task.learning_rate, "ent-coef": task.entropy_coef}
with finished(options, edits, METER=meter, NOTE=note):
    meter.finish()
