"""What torch.compile makes of a gradient step does what torch does, to rounding."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from levelhead.accelerate import CompiledEpochs
from levelhead.config import OptimizerConfig, PPOConfig
from levelhead.schedules import Schedule, constant
from parts import CHOICES, REALS, acted_on, configured_learner, learn, make_batch, make_policy
from toys import same, snapshot

# Of torch's own, on the way through its compiler.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

BUSIEST = {
    "ppo": PPOConfig(
        epochs=3, minibatches=4, value_clip=constant(0.3), value_huber=constant(0.5), entropy_coef=Schedule(0.1, 0.0),
        kl_limit=constant(2e-2),
    ),
    "optimizer": OptimizerConfig(learning_rate=Schedule(3e-3, 0.0), weight_decay=0.1),
}


def outcome(engine, make, options, rows=150, iterations=2):
    policy = make()
    learner = configured_learner(policy, engine=engine, **options)
    assert any(isinstance(phase, CompiledEpochs) for phase in learner.phases) == (engine == "compile")
    metrics = {}
    for i in range(iterations):
        learner.advance(i / iterations, i)
        batch = acted_on(policy, make_batch(policy, rows, seed=i))
        noise = torch.randn(rows, generator=torch.manual_seed(i))
        metrics = learn(learner, replace(batch, log_prob=batch.log_prob + 0.2 * noise), iteration=i)
    return {**snapshot(policy), **{n: x.clone() for n, x in learner.state_dict().items()}}, metrics


def agree(make, options):
    (expected, metrics), (given, reported) = (outcome(engine, make, options) for engine in ("torch", "compile"))
    assert given.keys() == expected.keys()
    assert reported.keys() == metrics.keys()
    for name, x in {**expected, **metrics}.items():
        torch.testing.assert_close({**given, **reported}[name], x, rtol=2e-3, atol=2e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("space", [CHOICES, REALS], ids=["choices", "reals"])
def test_it_agrees(space):
    agree(lambda: make_policy(space), BUSIEST)
