"""What levelhead adds to the import time of torch and gymnasium.

    python benchmarks/import_time.py [--rounds 7]

Each round starts a fresh interpreter per line, in turn; the median over rounds is what counts.
"""

import argparse
import statistics
import subprocess
import sys

BASE = "import torch, gymnasium"
CASES = {
    "import levelhead": "import levelhead",
    "import levelhead; levelhead.PopArtValueHead": "import levelhead; levelhead.PopArtValueHead",
    "import levelhead; levelhead.train": "import levelhead; levelhead.train",
}
CODE = """
import time
{base}
before = time.perf_counter()
{case}
print(time.perf_counter() - before)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, case in CASES.items():
            code = CODE.format(base=BASE, case=case)
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout))
    print("| after `import torch, gymnasium` | seconds, median (range) |\n|---|---|")
    for name, values in seconds.items():
        print(f"| `{name}` | {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}) |")


if __name__ == "__main__":
    main()
