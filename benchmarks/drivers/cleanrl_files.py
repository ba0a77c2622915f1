"""The files of CleanRL that the package `cleanrl` of PyPI holds, run with a task's settings as their command line.

`EDITS` are what its 1.2.0 of 2023 needs for Gymnasium 1.4; each must match exactly once. Its logging of episodes is
left out. Both files treat a time limit as an end.

As shipped, ppo.py leaves observations and rewards as they are, while ppo_continuous_action.py standardises
observations, divides rewards by the spread of their discounted sum and clips both to +-10; each environment has its own
such statistics. Their loss has half the squared error, so that its coefficient is twice the task's.
"""

import os
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

if TYPE_CHECKING:
    from scale_task import ScaleTask
    from tasks import Task

STEP = "next_obs, reward, {} = envs.step(action.cpu().numpy())"
EDITS = {
    "ppo.py": {
        "import gym\n": "import gymnasium as gym\n",
        "        env.seed(seed)\n": "",
        "envs.reset()": "envs.reset(seed=args.seed)[0]",
        STEP.format("done, info"): STEP.format("terminated, truncated, infos") + "; done = terminated | truncated",
        "for item in info:": "for item in ():",
    },
    "ppo_continuous_action.py": {
        "lambda obs: np.clip(obs, -10, 10))": "lambda obs: np.clip(obs, -10, 10), None)",
        'if "final_info" not in infos:': "if True:",
    },
}
EDITS_OF_BOTH = {
    "from distutils.util import strtobool\n": 'strtobool = {"True": 1, "False": 0}.__getitem__\n',
    "for i in range(args.num_envs)]\n": "for i in range(args.num_envs)],"
    " autoreset_mode=gym.vector.AutoresetMode.SAME_STEP\n",
}


def continuous(env_id: str) -> bool:
    """Whether actions are real numbers, which is what decides on the file."""
    return isinstance(gym.make(env_id).action_space, gym.spaces.Box)


def settings(task: "Task | ScaleTask", seed: int) -> dict[str, Any]:
    """What every task says to both files alike."""
    return {
        "env-id": task.env_id,
        "total-timesteps": task.steps,
        "seed": seed,
        "cuda": False,
        "num-envs": task.num_envs,
        "num-steps": task.num_steps,
        "gamma": task.gamma,
        "gae-lambda": task.lam,
        "num-minibatches": task.minibatches,
        "update-epochs": task.epochs,
        "clip-coef": task.clip_range,
        "vf-coef": 2 * task.value_coef,
        "max-grad-norm": task.max_grad_norm,
    }


@contextmanager
def finished(options: dict[str, Any], edits: dict[str, str], **names: object) -> Generator[dict[str, Any]]:
    """What one of its files defines, after it has run in a temporary directory, still the working directory.

    Args:
        options: of its command line.
        edits: more of these, to its text.
        names: that it finds defined.
    """
    name = "ppo_continuous_action.py" if continuous(options["env-id"]) else "ppo.py"
    path = Path(str(distribution("cleanrl").locate_file(f"cleanrl/{name}")))
    text = path.read_text()
    for old, new in {**EDITS[name], **EDITS_OF_BOTH, **edits}.items():
        if text.count(old) != 1:
            raise SystemExit(f"{path} has {old!r} {text.count(old)} times; expected once")
        text = text.replace(old, new)
    sys.argv = [str(path), *(x for option, value in options.items() for x in (f"--{option}", str(value)))]
    script = {"__name__": "__main__", "__file__": str(path), **names}
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            exec(compile(text, path, "exec"), script)
            yield script
        finally:
            os.chdir("/")
