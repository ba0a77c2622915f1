"""A PopArt head fits prices that a linear layer is too slow for; with a scale for each company, low ones too."""

import torch

import levelhead as lh


def test_the_table_spans_five_orders_of_magnitude(example):
    table = example("tabular").load()
    assert len(table.price) == len(table.features) == len(table.company) > 3000
    assert table.price.max() / table.price.min() > 1e5


def test_popart_is_ahead_and_a_scale_for_each_company_serves_all_of_them(example):
    linear, one, each = example("tabular").run(epochs=10).values()
    assert linear.all_prices < 0.7
    assert one.all_prices > 0.8
    assert each.all_prices > 0.8
    assert one.worst_company < -10  # cheap shares drown in the error of expensive ones
    assert each.worst_company > -0.5


def test_each_output_has_the_statistics_of_its_company(example):
    tabular = example("tabular")
    table = tabular.load()
    head = lh.PopArtValueHead(64, output_dim=10)
    tabular.fit(head, table, epochs=2, learning_rate=1e-3, seed=0)
    for company in range(10):
        prices = table.price[table.company == company].double()
        assert torch.isclose(head.mean[company], prices.mean(), rtol=0.3)
        assert torch.isclose(head.std[company], prices.std(), rtol=0.4)


def test_it_prints_a_line_for_each_head(example, capsys):
    example("tabular").main(["--epochs", "1"])
    assert len(capsys.readouterr().out.splitlines()) == 5
