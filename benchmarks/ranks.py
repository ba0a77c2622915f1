"""What several processes gain, what they send each other, and what that comes to on networks of other sizes.

    python benchmarks/ranks.py efficiency [--rounds 3]   one and two ranks on this machine, in turn
    python benchmarks/ranks.py links                     two to four hosts, as network namespaces (needs root)
    python benchmarks/ranks.py report

Every rank has as many environments as a process has by itself, and one thread. Efficiency is the time of an iteration
of one rank over that of two; beside it, the time of two processes that know nothing of each other, the slower one's,
over that of two ranks, as two processors at once may each be slower than one. `links` delays and throttles what hosts
send, and fits

    seconds = local + delays x delay x collectives + share x bytes / bandwidth

where a ring of N ranks has 2 (N - 1) delays and a share of 2 (N - 1) / N (Patarasuk and Yuan 2009, "Bandwidth optimal
all-reduce algorithms for clusters of workstations"); gloo has more delays, as who sends and who receives may have to
agree first. `report` prints both beside the theory, and what the same comes to with more ranks. Appends to
results/ranks.jsonl.
"""

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import records
import torch
from launch import TORCHRUN
from torch import distributed as dist

import levelhead as lh
from levelhead.distributed import is_first, process_group, ranks

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hosts import Hosts

ITERATIONS, WARM = 12, 2
DELAYS = (0.0, 0.002, 0.01)
"""Seconds on the way from host to host."""
RATES = (math.inf, 100e6, 20e6)
"""Bits per second that a host sends."""
HOSTS = (2, 3, 4)
KINDS = ("one rank", "two apart", "two ranks")
MORE = (8, 64, 512)
NETWORKS = {
    "100 Gbit/s, 5 us": (100e9, 5e-6),
    "10 Gbit/s, 50 us": (10e9, 50e-6),
    "1 Gbit/s, 200 us": (1e9, 200e-6),
}
"""Bandwidth, and delay from host to host."""


@dataclass(frozen=True)
class Work:
    """What every rank does: environments of its own, and so many minibatches over all of them."""

    env_id: str
    num_envs: int
    num_steps: int
    epochs: int
    minibatches: int
    width: int

    def config(self, count: int, iterations: int = ITERATIONS) -> lh.Config:
        envs = self.num_envs * count
        network = lh.NetworkConfig(actor=(self.width, self.width), critic=(self.width, self.width))
        return lh.Config(
            self.env_id,
            total_steps=iterations * envs * self.num_steps,
            num_envs=envs,
            num_steps=self.num_steps,
            device="cpu",
            threads=1,
            network=network,
            ppo=lh.PPOConfig(epochs=self.epochs, minibatches=self.minibatches),
        )


WORKS = {
    "compute-bound": Work("CartPole-v1", 16, 256, 10, 4, 256),
    "environment-bound": Work("HalfCheetah-v5", 8, 256, 2, 4, 64),
    "small steps": Work("HalfCheetah-v5", 8, 256, 10, 32, 64),
}
LINKED = Work("CartPole-v1", 4, 64, 4, 4, 64)
"""Little to compute, so that what is sent shows."""


class Counter:
    """Counts collectives, and bytes of those that add up."""

    def __init__(self) -> None:
        self.sums = self.bytes = self.others = 0
        dist.all_reduce = self._counted(dist.all_reduce, self._sum)
        for name in ("all_gather", "all_gather_object", "broadcast", "broadcast_object_list"):
            setattr(dist, name, self._counted(getattr(dist, name), self._other))

    @staticmethod
    def _counted(function: Callable[..., Any], note: Callable[[Any], None]) -> Callable[..., Any]:
        def counted(first: Any, *rest: Any, **named: Any) -> Any:
            note(first)
            return function(first, *rest, **named)

        return counted

    def _sum(self, x: torch.Tensor) -> None:
        self.sums += 1
        self.bytes += x.nbytes

    def _other(self, _: Any) -> None:
        self.others += 1

    def read(self) -> np.ndarray:
        return np.array([self.sums, self.bytes, self.others])


def rank(work: Work, path: Path) -> None:
    """Trains; rank 0 leaves the median seconds of an iteration, and what it takes part in."""
    torch.set_num_threads(1)
    with process_group():
        config, counter = work.config(ranks()), Counter()
        env = lh.make_gymnasium(work.env_id, work.num_envs)
        trainer = lh.build_trainer(config, env, lh.build_policy(config, env.observation_space, env.action_space))
        found, before, counted = list[dict[str, float]](), time.monotonic(), counter.read()
        for _ in trainer:
            now, counts = time.monotonic(), counter.read()
            sums, sent, others = (counts - counted).tolist()
            found.append({"seconds": now - before, "sums": sums, "bytes": sent, "others": others})
            before, counted = now, counts
        parameters = sum(x.nbytes for x in trainer.policy.parameters())
        tiny = hop() if ranks() > 1 else 0.0
        env.close()
    if is_first():
        medians = {name: statistics.median(one[name] for one in found[WARM:]) for name in found[0]}
        path.write_text(json.dumps({**medians, "parameters": parameters, "tiny": tiny}))


def hop() -> float:
    """Seconds of a sum of one number."""
    x, times = torch.zeros(1), list[float]()
    for _ in range(200):
        before = time.perf_counter()
        dist.all_reduce(x)
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def command(work: Work, path: Path) -> tuple[str, ...]:
    return (__file__, "rank", json.dumps(dataclasses.asdict(work)), str(path))


def here(work: Work, kind: str) -> dict[str, float]:
    """An iteration on this machine, of one of `KINDS`."""
    launcher = (*TORCHRUN, "--nproc-per-node=2") if kind == "two ranks" else ()
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / f"{k}.json" for k in range(2 if kind == "two apart" else 1)]
        started = [subprocess.Popen([sys.executable, *launcher, *command(work, path)]) for path in paths]
        statuses = [process.wait() for process in started]
        if any(statuses):
            raise SystemExit(f"{work} failed with {kind}")
        return max((json.loads(path.read_text()) for path in paths), key=lambda found: found["seconds"])


def efficiency(rounds: int) -> None:
    for i in range(1, rounds + 1):
        for name, work in WORKS.items():
            for kind in KINDS if i % 2 else reversed(KINDS):
                key = {"what": "efficiency", "work": name, "settings": dataclasses.asdict(work), "kind": kind}
                records.append("ranks", {**key, "round": i, **here(work, kind)})


def links() -> None:
    for count in HOSTS:
        for delay, rate in [(delay, math.inf) for delay in DELAYS] + [(0.0, rate) for rate in RATES[1:]]:
            with tempfile.TemporaryDirectory() as directory, Hosts(count, delay, rate) as hosts:
                path = Path(directory) / "found.json"
                processes = hosts.torchrun(sys.executable, command(LINKED, path), [directory] * count)
                said = [process.communicate(timeout=300)[0] for process in processes]
                if any(process.returncode for process in processes):
                    raise SystemExit("\n".join(said))
                found = json.loads(path.read_text())
            key = {"what": "links", "settings": dataclasses.asdict(LINKED), "ranks": count, "delay": delay}
            records.append("ranks", {**key, "bits_per_second": None if rate == math.inf else rate, **found})


def report() -> None:
    rows = records.read("ranks")
    local = report_efficiency([r for r in rows if r["what"] == "efficiency"])
    delays = report_fit([r for r in rows if r["what"] == "links" and r["settings"] == dataclasses.asdict(LINKED)])
    report_networks(local, delays)


def report_efficiency(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By work, what one rank takes and what two send each other."""
    heads = ("ms, one rank", "two apart", "two ranks", "efficiency", "of two apart")
    heads += ("sums in an iteration", "KB in each", "of the model", "others")
    print(f"| | {' | '.join(heads)} |\n" + "|---" * (len(heads) + 1) + "|")
    local = dict[str, dict[str, float]]()
    for name, work in WORKS.items():
        mine = [r for r in rows if r["work"] == name and r["settings"] == dataclasses.asdict(work)]
        by_kind = [{r["round"]: r for r in mine if r["kind"] == kind} for kind in KINDS]
        one, apart, two = by_kind
        if not (rounds := sorted(one.keys() & apart.keys() & two.keys())):
            continue
        last = two[rounds[-1]]
        cells = (
            name,
            *(f"{1e3 * statistics.median(r['seconds'] for r in which.values()):.0f}" for which in by_kind),
            *(spread([which[i]["seconds"] / two[i]["seconds"] for i in rounds]) for which in (one, apart)),
            f"{last['sums']:.0f}",
            f"{last['bytes'] / last['sums'] / 1e3:.1f}",
            f"{last['bytes'] / last['parameters']:.0f} times",
            f"{last['others']:.0f}",
        )
        print(f"| {' | '.join(cells)} |")
        local[name] = {**last, "local": statistics.median(r["seconds"] for r in one.values())}
    return local


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report_fit(rows: list[dict[str, Any]]) -> float:
    """Prints delays and shares as measured; answers how many delays there are for each of a ring."""
    print("\n| hosts | delays | of a ring | share of the bytes | of a ring | R2 |\n|---|---|---|---|---|---|")
    found = list[float]()
    for count in sorted({r["ranks"] for r in rows}):
        mine = [r for r in rows if r["ranks"] == count]
        bits = [8 * r["bytes"] / (r["bits_per_second"] or math.inf) for r in mine]
        inputs = np.array([[1, r["sums"] * r["delay"], sent] for r, sent in zip(mine, bits, strict=True)])
        seconds = np.array([r["seconds"] for r in mine])
        fitted, *_ = np.linalg.lstsq(inputs, seconds)
        rest = seconds - inputs @ fitted
        explained = 1 - rest @ rest / ((seconds - seconds.mean()) ** 2).sum()
        ring = 2 * (count - 1)
        print(f"| {count} | {fitted[1]:.2f} | {ring} | {fitted[2]:.2f} | {ring / count:.2f} | {explained:.3f} |")
        found.append(fitted[1] / ring)
    return statistics.mean(found) if found else math.nan


def report_networks(local: dict[str, dict[str, float]], delays: float) -> None:
    """What the model says of networks that aren't there."""
    work = statistics.median(r["tiny"] for r in local.values()) / 2 if local else math.nan
    print(
        f"\nEfficiency by the model, with {delays:.1f} delays for a hop, and {1e6 * work:.0f} us of work for it here.\n"
    )
    print(f"| | network | {' | '.join(f'{n} ranks' for n in MORE)} | bound by |\n" + "|---" * (len(MORE) + 3) + "|")
    for name, r in local.items():
        for network, (rate, delay) in NETWORKS.items():
            cells, bound = list[str](), ""
            for count in MORE:
                ring = 2 * (count - 1)
                parts = {
                    "computing": r["local"],
                    "delays": ring * delays * delay * r["sums"],
                    "work for hops": ring * work * r["sums"],
                    "bandwidth": ring / count * 8 * r["bytes"] / rate,
                }
                cells.append(f"{r['local'] / sum(parts.values()):.2f}")
                bound = max(parts, key=lambda part: parts[part])
            print(f"| {name} | {network} | {' | '.join(cells)} | {bound} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("efficiency").add_argument("--rounds", type=int, default=3)
    commands.add_parser("links")
    commands.add_parser("report")
    inner = commands.add_parser("rank")
    inner.add_argument("work", type=json.loads)
    inner.add_argument("path", type=Path)
    a = parser.parse_args()
    match a.command:
        case "efficiency":
            efficiency(a.rounds)
        case "links":
            links()
        case "rank":
            rank(Work(**a.work), a.path)
        case _:
            report()


if __name__ == "__main__":
    main()
