"""What the documents tell a reader to type works."""

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from levelhead.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
relinked = runpy.run_path(str(ROOT / "docs" / "links.py"))["relinked"]


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
    codes = [code.replace("\\\n", " ") for _, code in blocks("sh")]
    lines = [line.partition("#")[0].strip() for code in codes for line in code.splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line]


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("levelhead train")])
def test_commands_in_the_documents_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main([*shlex.split(command)[1:], "--total-steps", "8192"])
    assert exit_.value.code == 0


@pytest.mark.parametrize("command", [line for line in commands() if line.startswith("torchrun")])
def test_commands_for_several_ranks_in_the_documents_run(command, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, *shlex.split(command)[1:], "--total-steps", "2048"], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"greedy return" in done.stdout


def test_make_targets_in_the_documents_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {line.split()[1] for line in commands() if line.startswith("make ")}
    assert named
    assert named <= targets


def test_links_between_the_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.name)
def test_links_into_the_source_lead_to_the_lines_they_name(path):
    page = path.read_text()
    assert relinked(page, ROOT) == page


class TestRelinked:
    @pytest.fixture
    def root(self, tmp_path):
        (tmp_path / "code.py").write_text("a = 1\nb = a\nc = a\n")
        return tmp_path

    def test_a_link_follows_its_fragment(self, root):
        assert relinked("[`b = a`](../code.py#L9) [x](../y.md)", root) == "[`b = a`](../code.py#L2) [x](../y.md)"

    def test_a_line_that_has_the_fragment_is_left(self, root):
        assert relinked("[`= a`](../code.py#L3)", root) == "[`= a`](../code.py#L3)"

    @pytest.mark.parametrize(
        ("link", "lines"),
        [("[`d = a`](../code.py#L1)", 0), ("[`= a`](../code.py#L1)", 2), ("[`a = 1`](../gone.py#L1)", 0)],
    )
    def test_a_fragment_that_is_nowhere_or_in_several_places_is_refused(self, root, link, lines):
        with pytest.raises(ValueError, match=f"{re.escape(link)}.* on {lines} lines of .*\\.py; expected one"):
            relinked(link, root)
