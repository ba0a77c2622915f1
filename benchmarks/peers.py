"""Drivers of this library and of others, the latter each in a virtual environment of its own, made on first use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TORCH = ["torch==2.13.0"]  # first and alone, so that no resolver looks for another build of it
MUJOCO = ["gymnasium[classic-control,mujoco]==1.4.0", "mujoco==3.12.0"]
ATARI = ["ale-py==0.12.1", "opencv-python-headless==5.0.0.93"]
INSTALLS = {
    "sb3": [TORCH, ["stable-baselines3==2.9.2", "gymnasium[box2d,mujoco]==1.4.0", "mujoco==3.12.0", *ATARI]],
    "sb3contrib": [
        TORCH,
        ["sb3-contrib==2.9.2", "stable-baselines3==2.9.2", "gymnasium[classic-control,mujoco]==1.4.0"],
        ["mujoco==3.12.0", "popgym==1.0.7", "minigrid==3.2.0", "pettingzoo==1.27.0"],
    ],
    "cleanrl": [
        TORCH,
        [*MUJOCO, "numpy==2.4.6", "tensorboard==2.21.0"],
        # Its newest release asks for Python < 3.11 and packages of 2022; its single files run without either.
        ["--no-deps", "--ignore-requires-python", "cleanrl==1.2.0"],
    ],
    "sbx": [TORCH, ["sbx-rl==0.28.0", "jax==0.10.2", "stable-baselines3==2.9.2", *MUJOCO]],
    "rlgames": [TORCH, ["rl-games==1.6.5", *MUJOCO]],
    "skrl": [TORCH, ["skrl==2.1.1", *MUJOCO]],
    "rslrl": [TORCH, ["rsl-rl-lib==5.5.1", *MUJOCO]],
    "tianshou": [TORCH, ["tianshou==2.0.1", *MUJOCO]],
    # What it ran on when it was last changed.
    "purejaxrl": [["jax==0.4.35", "gymnax==0.0.8", "distrax==0.1.5", "flax==0.8.5", "optax==0.2.3", "numpy<2"]],
}  # fmt: skip
"""Arguments of `pip install`, in order."""
SOURCES = {"purejaxrl": ("https://github.com/luchris429/purejaxrl", "31756b197773a52db763fdbe6d635e4b46522a73")}
"""Repository and commit of what no package index has; it goes to `source` in the environment."""


def python(peer: str) -> str:
    """The interpreter of a peer's environment, which is made anew if it was made for other versions or not finished."""
    directory = ROOT / ".venv-peers" / peer
    interpreter, stamp = directory / "bin" / "python", directory / "installed.json"
    installs = json.dumps(INSTALLS[peer])
    if not stamp.exists() or stamp.read_text() != installs:
        print(f"installing {peer} into {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", "--clear", directory], check=True)
        for arguments in INSTALLS[peer]:
            subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *arguments], check=True)
        if peer in SOURCES:
            repository, commit = SOURCES[peer]
            subprocess.run(["git", "clone", "--quiet", repository, directory / "source"], check=True)
            subprocess.run(["git", "-C", directory / "source", "checkout", "--quiet", commit], check=True)
        stamp.write_text(installs)
    return str(interpreter)


def drive(library: str, driver: str, *arguments: object) -> dict[str, Any]:
    """What a driver's RESULT line says."""
    interpreter = sys.executable if library == "levelhead" else python(library)
    command = [interpreter, str(Path(__file__).parent / "drivers" / f"{library}_{driver}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix("RESULT "))
