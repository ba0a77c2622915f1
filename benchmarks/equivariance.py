"""Learning from y and from a (y + c): is the second learner the first one in other units?

    python benchmarks/equivariance.py run                       # two minutes on one core
    python benchmarks/equivariance.py report

A tanh trunk and a head see 60 batches of targets with mean 0.5, whose spread swings between 0.1 and 10. Statistics
move once per batch (by `observe`, as the trainer does, or by `update`), then follow four optimiser steps; the head
tracks the optimiser. Both learners then predict for 64 inputs. Two deviations are reported, 0 for an equivariant one:

- raw: of value / a - c, in units of the std of the last batch of y. A shift costs digits here: a float32 near c is off
  by up to 6e-8 c, and so is every target;
- normalised: of the heads' normalised outputs, relative to the largest.

`same bits` tells whether for a = 2^-90 and 2^90 every parameter is the same number, and every value a times it.
A spread of less than 1e-6 of the mean counts as rounding, not scale, so y + 1e6 is beyond what any head promises.
"""

import argparse
import itertools
import math
from collections.abc import Callable

import records
import torch
from torch import Tensor, nn

from levelhead import values
from levelhead.values import ValueHead

HEADS: dict[str, Callable[..., ValueHead]] = {
    "popart": values.PopArtValueHead,
    "runningnorm": values.RunningNormHead,
    "hlgauss": values.HLGaussValueHead,
    "valuenorm": values.ValueNormHead,
    "linear": values.LinearValueHead,
    "twohot": values.TwoHotValueHead,
    "symlog": values.TransformValueHead,
}
LEVEL = ("popart", "runningnorm", "hlgauss")
"""The heads that the promise names."""
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.02),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.005, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=3e-3, eps=1e-5),
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
CASES = {
    "1e-8 y": (1e-8, 0.0),
    "1e-3 y": (1e-3, 0.0),
    "1e3 y": (1e3, 0.0),
    "1e8 y": (1e8, 0.0),
    "y + 1": (1.0, 1.0),
    "y + 1e2": (1.0, 1e2),
    "y + 1e4": (1.0, 1e4),
    "y + 1e6": (1.0, 1e6),
    "1e-8 (y - 1e2)": (1e-8, -1e2),
    "1e8 (y + 1e2)": (1e8, 1e2),
}
"""a and c."""
COLUMNS = {
    "1e-8 to 1e8 y": [name for name, (_, shift) in CASES.items() if shift == 0],
    **{name: [name] for name, (scale, _) in CASES.items() if scale == 1},
    "1e-8 and 1e8 (y +- 1e2)": [name for name, (scale, shift) in CASES.items() if scale != 1 and shift != 0],
}
POWERS = (2.0**-90, 2.0**90)
BATCHES, BATCH, EPOCHS, INPUTS, FEATURES = 60, 32, 4, 4, 16
Outcome = tuple[ValueHead, Tensor, Tensor, list[Tensor]]


def batches(count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets, float64 numbers that a float32 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    answer = []
    for i in range(count):
        x = torch.randn(BATCH, INPUTS, generator=generator)
        noise = torch.randn(BATCH, generator=generator)
        y = 10 ** math.sin(i / 5) * ((x.sum(1) + x[:, 0] * x[:, 1]).sin() + 0.5 * noise) + 0.5
        answer.append((x.double(), y.double()))
    return answer


def learn(
    head_name: str,
    optimizer_name: str,
    dtype: torch.dtype,
    call: str = "observe",
    scale: float = 1.0,
    shift: float = 0.0,
    count: int = BATCHES,
) -> Outcome:
    """A head that has learned `scale * (y + shift)`; its values and normalised values, and all parameters."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(INPUTS, FEATURES), nn.Tanh(), nn.Linear(FEATURES, FEATURES), nn.Tanh()).to(dtype)
    head = HEADS[head_name](FEATURES, beta=0.9, dtype=dtype)
    parameters = [*trunk.parameters(), *head.parameters()]
    optimizer = OPTIMIZERS[optimizer_name](parameters)
    head.track(optimizer)
    probe = torch.randn(64, INPUTS).to(dtype)
    for x, y in batches(count):
        x, targets = x.to(dtype), (scale * (y + shift)).to(dtype)
        getattr(head, call)(targets)
        for _ in range(EPOCHS):
            optimizer.zero_grad()
            (0.5 * head.loss(trunk(x), targets)).mean().backward()
            optimizer.step()
    with torch.no_grad():
        features = trunk(probe)
        return head, head(features)[:, 0], head.forward_normalized(features)[:, 0], [p.detach() for p in parameters]


def deviations(one: Outcome, other: Outcome, scale: float, shift: float, std: float) -> tuple[float, float]:
    """Normalised and raw deviation of `other`, which has learned `scale * (y + shift)`; `std` is that of y."""
    (_, value, z, _), (_, other_value, other_z, _) = one, other
    normalized = (other_z - z).abs().max() / z.abs().max()
    raw = (other_value.double() / scale - shift - value.double()).abs().max() / std
    return float(normalized), float(raw)


def same_bits(one: Outcome, other: Outcome, scale: float) -> bool:
    """Whether every parameter is the same number, and every value `scale` times it."""
    (_, value, z, parameters), (_, other_value, other_z, other_parameters) = one, other
    same = all(torch.equal(p, q) for p, q in zip(parameters, other_parameters, strict=True))
    return same and torch.equal(z, other_z) and torch.equal(value * scale, other_value)


def run() -> None:
    done = {(r["head"], r["optimizer"], r["dtype"], r["call"]) for r in records.read("equivariance")}
    std = float(batches(BATCHES)[-1][1].std())
    calls = [*((name, "observe") for name in HEADS), ("popart", "update")]  # for the others the two are one
    for (head, call), optimizer, dtype in itertools.product(calls, OPTIMIZERS, DTYPES):
        if (head, optimizer, dtype, call) in done:
            continue
        how = (head, optimizer, DTYPES[dtype], call)
        one = learn(*how)
        result = {"head": head, "optimizer": optimizer, "dtype": dtype, "call": call, "normalized": {}, "raw": {}}
        for name, (scale, shift) in CASES.items():
            found = deviations(one, learn(*how, scale, shift), scale, shift, std)
            result["normalized"][name], result["raw"][name] = (
                float(f"{x:.3g}") if math.isfinite(x) else None for x in found
            )
        result["same_bits"] = all(same_bits(one, learn(*how, scale), scale) for scale in POWERS)
        records.append("equivariance", result)


def report() -> None:
    results = records.read("equivariance")
    for axis, heads in (("raw", tuple(HEADS)), ("normalized", LEVEL)):
        print(f"\nLargest {axis} deviation, by what is learned instead of y\n")
        print("| head | call | optimiser | dtype | " + " | ".join(COLUMNS) + " | same bits |")
        print("|" + "---|" * (len(COLUMNS) + 5))
        for r in results:
            if r["head"] in heads:
                cells = [r["head"], r["call"], r["optimizer"], r["dtype"]]
                cells += [worst([r[axis][name] for name in names]) for names in COLUMNS.values()]
                print(f"| {' | '.join(cells)} | {'yes' if r['same_bits'] else 'no'} |")


def worst(deviations: list[float | None]) -> str:
    """The largest; None is that of a run that diverged."""
    known = [x for x in deviations if x is not None]
    return f"{max(known):.0e}" if len(known) == len(deviations) else "diverged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "report"])
    torch.set_num_threads(1)
    run() if parser.parse_args().command == "run" else report()


if __name__ == "__main__":
    main()
