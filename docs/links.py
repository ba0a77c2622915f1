"""Keeps the documents' links into the source on the lines that they mean. As a script, mends every page of docs/."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[`(?P<fragment>[^`]+)`\]\(\.\./(?P<file>[^)#]+)#L(?P<line>\d+)\)")
"""A fragment of code, and the file and line that it stands on: [`fragment`](../src/levelhead/layers.py#L20)."""


def relinked(text: str, root: Path) -> str:
    """`text` with the right line number in each link that goes by a fragment of code.

    A link whose line has the fragment stays as it is. Any other follows its fragment, which must stand on one line of
    the file alone.

    Args:
        text: of a page that lies in a folder of `root`.
        root: of the repository.

    Raises:
        ValueError: a fragment stands nowhere in its file, or on several lines; link and file are named.
    """

    def mended(link: re.Match[str]) -> str:
        fragment, file, line = link["fragment"], link["file"], int(link["line"])
        source = (root / file).read_text(encoding="utf-8").split("\n") if (root / file).is_file() else []
        found = [number for number, code in enumerate(source, 1) if fragment in code]
        if line not in found:
            if len(found) != 1:
                raise ValueError(f"{link[0]}: `{fragment}` stands on {len(found)} lines of {file}; expected one")
            line = found[0]
        return f"[`{fragment}`](../{file}#L{line})"

    return LINK.sub(mended, text)


if __name__ == "__main__":
    for page in sorted((ROOT / "docs").glob("*.md")):
        page.write_text(relinked(page.read_text(encoding="utf-8"), ROOT), encoding="utf-8")
