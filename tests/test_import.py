"""Importing levelhead: cheap, and everything public is there."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import levelhead

STUB = ast.parse(Path(levelhead.__file__).with_suffix(".pyi").read_text())


def loaded_by(statement):
    code = f"{statement}; import json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout))


def test_a_bare_import_brings_nothing_along():
    heavy = {"torch", "numpy", "gymnasium", "tyro", "rich", "tensorboard", "matplotlib", "safetensors"}
    assert not heavy & loaded_by("import levelhead")


INTERRUPTED = """
import sys
class Interrupt:
    def find_spec(self, name, *others):
        if name == "levelhead.cli":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
from levelhead.__main__ import main
main()
"""


def test_an_interruption_while_the_program_is_loaded_is_one_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "levelhead: interrupted\n")


def test_a_value_head_does_not_bring_the_trainer_along():
    assert not {"gymnasium", "tyro", "rich", "tensorboard"} & loaded_by("import levelhead; levelhead.PopArtValueHead")


def test_every_public_name_is_what_it_says_even_after_every_module_was_imported():
    for module in pkgutil.walk_packages(levelhead.__path__, "levelhead."):
        if not module.name.endswith(("__main__", "._native")):  # the latter is a plain library
            importlib.import_module(module.name)
    for name in levelhead.__all__:
        assert not isinstance(getattr(levelhead, name), ModuleType), name


def test_a_star_import_brings_every_public_name():
    names = {}
    exec("from levelhead import *", names)
    assert set(levelhead.__all__) <= names.keys()


def test_each_name_has_one_home_and_type_checkers_take_it_for_public():
    homes = [node for node in STUB.body if isinstance(node, ast.ImportFrom)]
    names = [alias.name for node in homes for alias in node.names]
    assert all(alias.asname == alias.name for node in homes for alias in node.names)
    for node in homes:
        home = importlib.import_module(f"levelhead.{node.module}")
        assert all(getattr(home, alias.name) is getattr(levelhead, alias.name) for alias in node.names)
    assert sorted(levelhead.__all__) == sorted(dir(levelhead)) == sorted(["__version__", *names])


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = levelhead.nonsense
