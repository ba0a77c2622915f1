"""Drivers of this library and of others, the latter each in a virtual environment of its own, made on first use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REQUIREMENTS = {"sb3": ["stable-baselines3==2.9.2", "gymnasium[mujoco]==1.4.0", "mujoco==3.12.0"]}


def python(peer: str) -> str:
    """The interpreter of a peer's environment."""
    directory = ROOT / ".venv-peers" / peer
    interpreter = directory / "bin" / "python"
    if not interpreter.exists():
        print(f"installing {peer} into {directory}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        for requirements in (["torch==2.13.0"], REQUIREMENTS[peer]):
            subprocess.run([interpreter, "-m", "pip", "install", "--quiet", *requirements], check=True)
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
