"""Regression on monthly stock prices, from 8 cents to 16,000 dollars, with three last layers at one learning rate.

A linear layer, a PopArt head with one scale for all prices, and a PopArt head with a scale for each company: nobody
tells any of them how large the prices are. The table ships with matplotlib, so nothing is downloaded.
"""

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

import torch
from matplotlib.cbook import get_sample_data
from torch import Tensor, nn

import levelhead as lh


@dataclass(frozen=True)
class Table:
    """One row for each company and month."""

    features: Tensor
    """`[N, 1 + C]`: time, and which of C companies."""
    company: Tensor
    """`[N]` int64."""
    price: Tensor
    """`[N]`, in dollars."""

    def rows(self, index: Tensor) -> "Table":
        return Table(self.features[index], self.company[index], self.price[index])


@dataclass(frozen=True)
class Score:
    """Share of the variance that is explained, on held-out rows: 1 is perfect, 0 no better than the mean."""

    all_prices: float
    worst_company: float
    """The lowest among the companies, each judged by the variance of its own prices."""


def load() -> Table:
    with get_sample_data("Stocks.csv") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    companies = [name for name in rows[0] if name != "Date"]
    cells = [(row["Date"], i, row[name]) for row in rows for i, name in enumerate(companies) if row[name]]
    days, company, price = zip(*cells, strict=True)
    time = torch.tensor([date.fromisoformat(day).toordinal() for day in days], dtype=torch.float64)
    time = (time - time.mean()) / time.std()
    company = torch.tensor(company)
    features = torch.cat((time.unsqueeze(1), nn.functional.one_hot(company)), dim=1)
    return Table(features.float(), company, torch.tensor([float(x) for x in price]))


def fit(head: lh.ValueHead, table: Table, epochs: int, learning_rate: float, seed: int) -> nn.Sequential:
    """A network with `head` as its last layer, trained on raw prices; a head of several outputs has one per company."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(table.features.shape[1], 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), head)
    optimizer = torch.optim.Adam(net.parameters(), learning_rate)
    head.track(optimizer)
    for _ in range(epochs):
        for index in torch.randperm(len(table.price)).split(64):
            batch = table.rows(index)
            # `task` says which output a price belongs to, and so whose mean and std it moves and is measured by.
            task = batch.company if head.output_dim > 1 else None
            head.observe(batch.price, task=task)
            optimizer.zero_grad()
            head.loss(net[:-1](batch.features), batch.price, task=task).mean().backward()
            optimizer.step()
    return net


@torch.no_grad()
def score(net: nn.Module, table: Table) -> Score:
    values = net(table.features)  # in dollars, [N, K]
    column = table.company if values.shape[1] > 1 else torch.zeros_like(table.company)
    value = values.gather(1, column.unsqueeze(1)).squeeze(1)

    def explained(rows: Tensor) -> float:
        price = table.price[rows].double()
        return (1 - (value[rows] - price).square().mean() / price.var(correction=0)).item()

    companies = [explained(table.company == i) for i in table.company.unique()]
    return Score(explained(table.price > 0), min(companies))


def run(epochs: int = 200, learning_rate: float = 1e-3, seed: int = 0) -> dict[str, Score]:
    table = load()
    shuffled = torch.randperm(len(table.price), generator=torch.Generator().manual_seed(seed))
    held_out, rest = shuffled.tensor_split([len(shuffled) // 5])
    heads = {
        "linear layer": lh.LinearValueHead(64),
        "PopArt, one scale": lh.PopArtValueHead(64),
        "PopArt, a scale for each company": lh.PopArtValueHead(64, output_dim=int(table.company.max()) + 1),
    }
    return {
        name: score(fit(head, table.rows(rest), epochs, learning_rate, seed), table.rows(held_out))
        for name, head in heads.items()
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=200, help="passes over the table (default: 200)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="of Adam (default: 0.001)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)  # the tensors are small: a second thread only costs
    print(f"share of the variance explained on held-out rows, after {args.epochs} epochs:")
    print(f"{'':34}{'all prices':>10}{'worst company':>15}")
    for name, reached in run(args.epochs, args.learning_rate, args.seed).items():
        print(f"  {name:32}{reached.all_prices:10.3f}{reached.worst_company:15.3f}")


if __name__ == "__main__":
    main()
