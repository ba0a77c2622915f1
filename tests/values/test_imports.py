"""The value heads are usable in any PyTorch code: they bring nothing of the trainer along."""

import json
import subprocess
import sys

import pytest

PROBE = "import json, sys, levelhead.values; print(json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def modules():
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def test_the_heads_import_numerics_and_schedules_at_most(modules):
    own = {name for name in modules if name.split(".")[0] == "levelhead"}
    own = {name for name in own if not f"{name}.".startswith("levelhead.values.")}
    assert own <= {"levelhead", "levelhead.numerics", "levelhead.schedules"}


@pytest.mark.parametrize("package", ["gymnasium", "rich", "tyro"])
def test_the_heads_do_not_import_what_the_trainer_needs(modules, package):
    assert package not in modules
