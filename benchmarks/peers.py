"""Other libraries, each in a virtual environment of its own beside ours, made on first use."""

import subprocess
import sys
from pathlib import Path

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
