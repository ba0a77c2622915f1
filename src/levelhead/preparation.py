"""What a process does before it trains or plays: imports, threads, precision, and agreement among ranks."""

import hashlib
import importlib
import platform
import warnings
from importlib.metadata import version
from pathlib import Path

import torch

from levelhead import native
from levelhead.builders import build_device
from levelhead.config import Config
from levelhead.distributed import be_patient, gathered_values, ranks, require_same
from levelhead.errors import ConfigError
from levelhead.serialize import flattened, to_json
from levelhead.threads import processors


def prepare(config: Config) -> None:
    """Imports the modules that a config names and sets torch's threads and precision, as training and evaluation need
    it.

    Raises:
        ConfigError: a module cannot be imported, or the device has no such precision.

    Warns:
        UserWarning: the processor computes in the precision by emulation alone.
    """
    reduced = config.network.precision == "tf32"
    if reduced and build_device(config.device).type != "cuda":
        raise ConfigError("network.precision is tf32, which GPUs have; accepted here: float32, bfloat16, float64")
    if config.network.precision == "bfloat16" and build_device(config.device).type == "cpu":
        _warn_of_emulation()
    torch.set_float32_matmul_precision("high" if reduced else "highest")
    torch.backends.cudnn.allow_tf32 = reduced
    for module in config.imports:
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ConfigError(f"cannot import {module}: {error!r}") from error
    if config.threads != 0:
        torch.set_num_threads(min(config.threads or 1, processors()))


def _warn_of_emulation() -> None:
    if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
        warnings.warn(
            "network.precision is bfloat16, which this processor has no instructions for: float32 is much faster",
            stacklevel=4,
        )


def agree(config: Config) -> None:
    """Makes sure that ranks have the same before them, and that native code rounds alike on all of them."""
    require_same(_common_ground(config))
    be_patient(config.parallel.timeout)
    native.limit(min(gathered_values(native.best_instruction_set()), key=native.INSTRUCTION_SETS.index))


def _common_ground(config: Config) -> dict[str, str]:
    """What must be the same on all ranks."""
    if ranks() == 1:
        return {}
    code = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("**/*.py")):
        code.update(path.read_bytes())
    versions = {f"the version of {name}": version(name) for name in ("torch", "gymnasium", "numpy")}
    built = {} if config.engine == "torch" else {"native code": "built" if native.available() else "not built"}
    return {**flattened(to_json(config)), **versions, **built, "levelhead's code": code.hexdigest()[:12]}
