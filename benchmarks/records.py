"""Results kept one per line, so that an interrupted benchmark goes on where it stopped."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def read(name: str) -> list[dict[str, Any]]:
    """The results kept under a name; none where there is no file yet."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append(name: str, result: dict[str, Any]) -> None:
    """Keeps a result, dated, and shows it."""
    line = json.dumps({"date": f"{datetime.now(UTC):%Y-%m-%d}", **result})
    with (RESULTS / f"{name}.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)
