"""Memory layers: many steps at once are one step after another, and nothing crosses an episode's beginning."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from levelhead.networks import GRU, LSTM, Memory, Network, Torso, memory
from levelhead.tree import tree_leaves, tree_map

STEPS, COLUMNS, INPUTS, UNITS = 12, 5, 3, 4
every_kind = pytest.mark.parametrize("kind", [LSTM, GRU])


def drawn(kind, seed=0):
    """A memory with random weights, inputs, a state to start from, and resets at random places."""
    generator = torch.Generator().manual_seed(seed)
    memory = kind(INPUTS, UNITS).double()
    with torch.no_grad():
        for parameter in memory.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x = torch.randn(STEPS, COLUMNS, INPUTS, generator=generator, dtype=torch.float64)
    state = tree_map(lambda s: torch.randn(s.shape, generator=generator).double(), memory.initial_state(COLUMNS))
    return memory, x, state, torch.rand(STEPS, COLUMNS, generator=generator) < 0.2


def by_hand(memory, x, state, reset):
    """One step and one column at a time, through torch's cell."""
    make = nn.LSTMCell if isinstance(memory, LSTM) else nn.GRUCell
    cell = make(INPUTS, UNITS).double()
    cell.load_state_dict({name.removesuffix("_l0"): p for name, p in memory.cell.named_parameters()})
    outputs, ends = torch.zeros(STEPS, COLUMNS, UNITS, dtype=torch.float64), []
    for i in range(COLUMNS):
        now = tree_map(lambda s, i=i: s[i], state)
        for t in range(STEPS):
            now = cell(x[t, i], tree_map(torch.zeros_like, now) if reset[t, i] else now)
            outputs[t, i] = now[0] if isinstance(now, tuple) else now
        ends.append(now)
    return outputs, tree_map(lambda *s: torch.stack(s), *ends)


@every_kind
@pytest.mark.parametrize("seed", range(3))
def test_a_sequence_is_one_step_after_another_with_resets_anywhere(kind, seed):
    memory, x, state, reset = drawn(kind, seed)
    y, after = memory(x, state, reset)
    expected, end = by_hand(memory, x, state, reset)
    assert_close(y, expected, rtol=0, atol=1e-12)
    for ours, theirs in zip(tree_leaves(after), tree_leaves(end), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-12)


@every_kind
@pytest.mark.parametrize("cuts", [range(1, STEPS), [5], [4, 8]])
def test_a_sequence_may_be_cut_anywhere_and_go_on_from_the_state(kind, cuts):
    memory, x, state, reset = drawn(kind)
    whole, end = memory(x, state, reset)
    pieces = []
    for start, stop in itertools.pairwise((0, *cuts, STEPS)):
        y, state = memory(x[start:stop], state, reset[start:stop])
        pieces.append(y)
    assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-12)
    for ours, theirs in zip(tree_leaves(state), tree_leaves(end), strict=True):
        assert_close(ours, theirs, rtol=0, atol=1e-12)


@every_kind
def test_nothing_and_no_gradient_crosses_the_beginning_of_an_episode(kind):
    memory, x, state, _ = drawn(kind)
    reset = torch.zeros(STEPS, COLUMNS, dtype=torch.bool)
    reset[7, 2] = True
    x.requires_grad_()
    y, _ = memory(x, state, reset)
    (gradient,) = torch.autograd.grad(y[7:].sum(), x)
    assert (gradient[:7, 2] == 0).all()
    assert (gradient[:7, [0, 1, 3, 4]] != 0).all()  # a reset of one column leaves the others alone
    other = x.detach().clone()
    other[:7, 2] = torch.nan
    assert torch.equal(memory(other, state, reset)[0][7:, 2], y[7:, 2].detach())


@every_kind
def test_gradients_are_those_of_finite_differences(kind):
    memory, x, state, reset = drawn(kind)

    def run(x, *leaves):
        shaped = leaves if kind is LSTM else leaves[0]
        return memory(x, shaped, reset)[0]

    inputs = [x[:4], *(s.clone() for s in tree_leaves(state))]
    reset = reset[:4]
    assert torch.autograd.gradcheck(run, [i.requires_grad_() for i in inputs])


@every_kind
def test_an_episode_begins_with_nothing_remembered(kind):
    memory, x, state, _ = drawn(kind)
    begins = torch.ones(1, COLUMNS, dtype=torch.bool)
    fresh = memory(x[:1], memory.initial_state(COLUMNS), torch.zeros_like(begins))[0]
    assert torch.equal(memory(x[:1], state, begins)[0], fresh)
    assert all((s == 0).all() for s in tree_leaves(memory.initial_state(3)))


class Total(Memory):
    """Remembers the sum of its inputs."""

    def initial_state(self, n):
        return torch.zeros(n, 1)

    def forward(self, x, state, reset):
        outputs = []
        for row, begins in zip(x, reset, strict=True):
            state = torch.where(begins.unsqueeze(-1), 0.0, state) + row
            outputs.append(state)
        return torch.stack(outputs), state


def test_a_torso_hands_its_memories_their_states_in_order():
    torso = Torso(Total(), nn.Flatten(), Total())
    x, reset = torch.arange(1.0, 5.0).view(4, 1), torch.tensor([[False], [False], [True], [False]])
    y, state = torso(x, (torch.tensor([[10.0]]), torch.tensor([[100.0]])), reset)
    assert y.flatten().tolist() == [111.0, 124.0, 3.0, 10.0]
    assert [s.item() for s in state] == [7.0, 10.0]


def test_a_network_without_memory_has_no_state():
    network = Network(nn.Identity(), nn.Linear(3, 2), nn.Linear(3, 2), 2, 2)
    assert tree_leaves(network.initial_state(7)) == []


def resets(seed, steps, n, share):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, n, generator=generator) < share


@every_kind
@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize(("steps", "n"), [(2, 1), (7, 1), (9, 3), (30, 4)])
def test_episodes_side_by_side_are_what_they_are_in_order(monkeypatch, kind, share, steps, n):
    torch.manual_seed(0)
    layer, make, taken = kind(INPUTS, UNITS).double(), memory.Episodes, set()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)

    def both_ways(x, before, reset):
        for cost in (0.0, math.inf):

            def chosen(given, cost=cost):
                episodes = make(given)
                if hasattr(episodes, "rows"):  # else no episode ends, and there is one way alone
                    episodes.in_order, episodes.side_by_side = 1.0, cost
                    taken.add(cost)
                return episodes

            monkeypatch.setattr(memory, "Episodes", chosen)
            y, after = layer(x, before, reset)
            weighed = (y * torch.arange(y.numel()).view_as(y)).sum() + sum(s.square().sum() for s in tree_leaves(after))
            inputs = [x, *tree_leaves(before), *layer.parameters()]
            yield y, *tree_leaves(after), *torch.autograd.grad(weighed, inputs, materialize_grads=True)

    for seed in range(12):
        x = torch.randn(steps, n, INPUTS, dtype=torch.float64, requires_grad=True)
        before = tree_map(lambda s: torch.randn_like(s).requires_grad_(), layer.initial_state(n))
        for one, other in zip(*both_ways(x, before, resets(seed, steps, n, share)), strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert taken == {0.0, math.inf}


def test_the_shorter_way_is_taken():
    reset = torch.zeros(128, 2, dtype=torch.bool)
    reset[10::10] = True
    many = memory.Episodes(reset)
    assert many.side_by_side < many.in_order / 3
    reset[:] = False
    reset[5, 1] = True  # the other column goes on from the first step: that makes 5 steps more, and a call
    few = memory.Episodes(reset)
    assert few.in_order < few.side_by_side
