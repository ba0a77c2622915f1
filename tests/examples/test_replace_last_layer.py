"""A layer is replaced without a trace, and then learns at a scale where the old one does not."""

import re

import pytest


def test_nothing_changes_until_it_learns_and_then_it_learns_fast(example):
    outcome = example("replace_last_layer").run(steps=200, scale=1000.0)
    assert outcome.changed_by_replacement == 0.0
    assert outcome.changed_by_update < 1e-6
    assert outcome.popart_error < 0.3
    assert outcome.plain_error > 1.0


def test_the_scale_makes_no_difference_to_the_head(example):
    errors = [example("replace_last_layer").run(steps=100, scale=2.0**k).popart_error for k in (20, 40)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_it_prints_both_errors(example, capsys):
    example("replace_last_layer").main(["--steps", "20"])
    assert re.search(r"linear layer \d+\.\d{3}   PopArt head \d\.\d{3}", capsys.readouterr().out)
