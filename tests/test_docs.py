"""What the documents tell a reader to type works."""

import re
import shlex
from pathlib import Path

import pytest

from levelhead.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[tuple[str, str]]:
    found = [
        (f"{path.name}-{i}", code)
        for path in DOCUMENTS
        for i, code in enumerate(re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL))
    ]
    assert found
    return found


@pytest.mark.parametrize("code", [pytest.param(code, id=name) for name, code in blocks("python")])
def test_python_in_the_documents_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "document", "exec"), {})


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for _, code in blocks("sh") for line in code.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line]


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("levelhead train")])
def test_commands_in_the_documents_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([*shlex.split(command)[1:], "--total-steps", "2048"])
    assert exit_.value.code == 0


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert named
    assert named <= targets


def test_links_between_the_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
