"""Optimisers and target networks that move with a head."""

import copy
import gc
import weakref

import pytest
import torch
from family import FIXED, KINDS, MOVING, STATISTICS, D, each, seeds
from family import randomized as untracked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW
from torch.testing import assert_close

from levelhead.values import PopArtValueHead, RunningNormHead

K, GROWTH = 2, 1000.0
law = settings(deadline=None, max_examples=40)
OPTIMIZERS = {
    "adam": lambda parameters: Adam(parameters, lr=0.0),
    "adamw": lambda parameters: AdamW(parameters, lr=0.0, amsgrad=True),
    "sgd": lambda parameters: SGD(parameters, lr=0.0, momentum=0.9, nesterov=True),
}


def randomized(kind=PopArtValueHead, beta=0.0, output_dim=K):
    return untracked(kind, output_dim, beta=beta)


def samples(n=6, scale=1.0):
    return torch.randn(n, D, dtype=torch.float64), scale * torch.randn(n, K, dtype=torch.float64)


def per_output(moment):
    """Moments of weight and bias, one behind the other, as a row per output."""
    return torch.cat((moment[: D * K].view(K, D), moment[D * K :, None]), 1)


class Ordinary:
    """The layer's two parameters in an optimiser, as they are."""

    def __init__(self, head, make):
        self.head, self.optimizer = head, make(list(head.parameters()))

    def step(self, x, y, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        self.head.loss(x, y).mean().backward()
        self.optimizer.step()

    def moments(self):
        weight, bias = (self.optimizer.state[p] for p in self.head.parameters())
        return {name: torch.cat((weight[name].flatten(), bias[name])) for name in weight if weight[name].ndim}


class Flat(Ordinary):
    """The layer as views, bias first, into a flat tensor that holds other parameters around them."""

    def __init__(self, head, make):
        weight, bias = head.linear.weight, head.linear.bias
        storage = torch.ones(5 + 3 + K + 1 + D * K + 2, dtype=torch.float64)
        own = storage[5:]
        for parameter, start in ((bias, 3), (weight, 3 + K + 1)):
            view = own[start : start + parameter.numel()].view_as(parameter)
            view.copy_(parameter.detach())
            parameter.data = view
        self.head, self.flat = head, torch.nn.Parameter(own)
        self.layer = torch.tensor([*range(3 + K + 1, 3 + K + 1 + D * K), *range(3, 3 + K)])
        self.optimizer = make([self.flat])

    def step(self, x, y, lr):
        self.optimizer.param_groups[0]["lr"] = lr
        loss = self.head.loss(x, y).mean()
        weight, bias = torch.autograd.grad(loss, [self.head.linear.weight, self.head.linear.bias])
        self.flat.grad = torch.ones_like(self.flat)
        self.flat.grad[self.layer] = torch.cat((weight.flatten(), bias))
        self.optimizer.step()

    def moments(self):
        state = self.optimizer.state[self.flat]
        return {name: state[name][self.layer] for name in state if state[name].ndim}

    def elsewhere(self):
        state, rest = self.optimizer.state[self.flat], torch.ones(len(self.flat), dtype=torch.bool)
        rest[self.layer] = False
        return {name: state[name][rest] for name in state if state[name].ndim}


@pytest.mark.parametrize("form", [Ordinary, Flat])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@law
@given(seeds)
def test_after_the_rewrite_the_next_step_is_that_of_a_head_that_was_always_at_the_new_scale(form, make, seed):
    # In raw units, gradients of the normalized loss go as 1/std. While the learning rate is 0, a head that is at the
    # new statistics from the start and one that gets there later predict the same and gather their own moments.
    torch.manual_seed(seed)
    _, small = samples()
    large = GROWTH * torch.tensor([1.0, 1e-6]).double() * (small + 3)
    late = randomized()
    late.adopt(small)
    always = copy.deepcopy(late)
    always.update(large)
    late, always = form(late, make), form(always, make)
    late.head.track(late.optimizer)
    data = [samples() for _ in range(4)]
    for x, y in data[:-1]:
        for one in (late, always):
            one.step(x, y, lr=0.0)
    late.head.update(large)
    ours, theirs = late.moments(), always.moments()
    assert ours
    for name, moment in ours.items():
        sizes = per_output(theirs[name]).abs().amax(1, keepdim=True)
        assert (per_output(moment - theirs[name]).abs() <= 1e-10 * sizes).all(), name
    for one in (late, always):
        one.step(*data[-1], lr=0.1)
    for ours, theirs in zip(late.head.parameters(), always.head.parameters(), strict=True):
        assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", [Ordinary, Flat])
def test_moments_go_with_the_ratio_of_old_to_new_std_second_ones_with_its_square(form):
    torch.manual_seed(0)
    head, (x, y) = randomized(), samples()
    head.adopt(y)
    one = form(head, OPTIMIZERS["adamw"])
    head.track(one.optimizer)
    one.step(x, y, lr=0.01)
    before, std = {name: moment.clone() for name, moment in one.moments().items()}, head.std.clone()
    others = {name: moment.clone() for name, moment in one.elsewhere().items()} if form is Flat else {}
    head.update(GROWTH * y)
    ratio = std / head.std
    factor = torch.cat((ratio.repeat_interleave(D), ratio))
    for name, moment in one.moments().items():
        assert_close(moment, before[name] * factor ** (1 if name == "exp_avg" else 2), rtol=1e-12, atol=0)
    if form is Flat:
        assert_close(one.elsewhere(), others, rtol=0, atol=0)


@pytest.mark.parametrize(("form", "backend"), [(Ordinary, "eager"), (Flat, "aot_eager")])
def test_a_compiled_update_rescales_the_moments_as_an_eager_one_does(form, backend):
    torch.manual_seed(0)
    head, (x, y) = randomized(), samples()
    ours, eager = (form(copy.deepcopy(head), OPTIMIZERS["adamw"]) for _ in range(2))
    for one in (ours, eager):
        one.head.track(one.optimizer)
        one.step(x, y, lr=0.01)
    torch._dynamo.reset()
    compiled = torch.compile(ours.head.update, fullgraph=True, backend=backend)
    for growth in (1.0, GROWTH, 1e-6):
        compiled(growth * y + 1)
        eager.head.update(growth * y + 1)
        assert_close(ours.moments(), eager.moments(), rtol=1e-12, atol=0)
        assert_close([*ours.head.parameters()], [*eager.head.parameters()], rtol=1e-12, atol=1e-12)
        if form is Flat:
            assert_close(ours.flat, eager.flat, rtol=1e-12, atol=1e-12)
            assert_close(ours.elsewhere(), eager.elsewhere(), rtol=0, atol=0)
    torch._dynamo.reset()


def test_before_its_first_step_an_optimizer_has_nothing_to_rescale():
    head = randomized()
    optimizer = Adam(head.parameters())
    assert head.track(optimizer) is head
    head.update(samples()[1])
    assert not optimizer.state


@each([kind for kind in KINDS if kind is not PopArtValueHead])
def test_moments_stay_where_the_layer_is_not_rewritten(kind):
    head, (x, y) = randomized(kind), samples()
    one = Ordinary(head, OPTIMIZERS["adam"])
    head.track(one.optimizer)
    one.step(x, y, lr=0.01)
    before = copy.deepcopy(one.optimizer.state_dict())
    head.update(GROWTH * y)
    assert_close(one.optimizer.state_dict(), before, rtol=0, atol=0)


def test_adoption_leaves_the_moments():
    head, (x, y) = randomized(), samples()
    one = Ordinary(head, OPTIMIZERS["adam"])
    head.track(one.optimizer)
    one.step(x, y, lr=0.01)
    before = copy.deepcopy(one.optimizer.state_dict())
    head.adopt(GROWTH * y)
    assert_close(one.optimizer.state_dict(), before, rtol=0, atol=0)


STRANGERS = {
    "another head": lambda head: randomized().parameters(),
    "a copy": lambda head: copy.deepcopy(head).parameters(),
    "the weight alone": lambda head: [head.linear.weight],
    "a flat copy": lambda head: [torch.nn.Parameter(torch.cat([p.detach().flatten() for p in head.parameters()]))],
    "a part of the weight": lambda head: [torch.nn.Parameter(head.linear.weight.detach()[:1]), head.linear.bias],
}


@pytest.mark.parametrize("strangers", STRANGERS.values(), ids=STRANGERS.keys())
def test_an_optimizer_that_does_not_hold_the_layer_is_refused(strangers):
    head = randomized()
    optimizer = Adam(strangers(head))
    with pytest.raises(ValueError, match="doesn't hold"):
        head.track(optimizer)
    head.update(samples()[1])


def test_a_link_keeps_nothing_alive():
    leader, follower = randomized(), randomized()
    optimizer = Adam(leader.parameters())
    leader.track(optimizer).mirror(follower)
    links = weakref.ref(optimizer), weakref.ref(follower)
    del optimizer, follower
    gc.collect()
    assert [link() for link in links] == [None, None]
    leader.update(samples()[1])


def test_a_link_is_no_part_of_copies_modules_or_state():
    leader, follower, (x, y) = randomized(), randomized(), samples()
    names, one = leader.state_dict().keys(), Ordinary(leader, OPTIMIZERS["adam"])
    leader.track(one.optimizer).mirror(follower)
    one.step(x, y, lr=0.01)
    before = copy.deepcopy((one.optimizer.state_dict(), follower.state_dict()))
    twin = copy.deepcopy(leader)
    twin.update(GROWTH * y)
    assert_close(
        (one.optimizer.state_dict(), dict(follower.state_dict())), (before[0], dict(before[1])), rtol=0, atol=0
    )
    assert leader.state_dict().keys() == names
    assert len(list(leader.parameters())) == 2
    assert follower not in list(leader.modules())


@law
@given(seeds, st.lists(st.integers(-9, 9), min_size=1, max_size=4))
def test_a_mirror_keeps_its_own_outputs_at_every_update_of_its_leader(seed, powers):
    torch.manual_seed(seed)
    leader, follower, (x, y) = randomized(beta=0.5), randomized(beta=0.9), samples()
    follower.update(7 * y + 100)  # statistics of its own until the first update of its leader
    one = Ordinary(follower, OPTIMIZERS["adam"])
    follower.track(one.optimizer)
    one.step(x, y, lr=0.01)
    assert leader.mirror(follower) is leader
    for power in powers:
        values, std = follower(x), follower.std.clone()
        moments = {name: moment.clone() for name, moment in one.moments().items()}
        size = follower.std * follower.forward_normalized(x).abs().amax(0) + follower.mean.abs()
        leader.update(10.0**power * (samples()[1] + 1))
        assert ((follower(x) - values).abs().amax(0) <= 1e-12 * (size + leader.mean.abs() + leader.std)).all()
        assert all(torch.equal(follower.get_buffer(name), leader.get_buffer(name)) for name in STATISTICS)
        ratio = std / leader.std
        factor = torch.cat((ratio.repeat_interleave(D), ratio))
        assert_close(one.moments()["exp_avg"], moments["exp_avg"] * factor, rtol=1e-12, atol=0)


def test_a_mirror_adopts_with_its_leader():
    leader, follower = randomized(), randomized()
    leader.mirror(follower)
    before = [parameter.detach().clone() for parameter in follower.parameters()]
    leader.adopt(GROWTH * samples()[1])
    assert torch.equal(follower.std, leader.std)
    assert_close([parameter.detach() for parameter in follower.parameters()], before, rtol=0, atol=0)


@each(MOVING)
def test_a_mirror_of_any_kind_takes_over_the_statistics(kind):
    leader, follower = randomized(kind), randomized(kind)
    follower.update(7 * samples()[1] + 100)
    leader.mirror(follower).update(samples()[1])
    assert all(torch.equal(follower.get_buffer(name), leader.get_buffer(name)) for name in STATISTICS)


@each(FIXED)
def test_a_mirror_of_a_head_without_statistics_only_counts(kind):
    leader, follower, (x, y) = randomized(kind), randomized(kind), samples()
    before = follower(x)
    leader.mirror(follower).update(y)
    assert torch.equal(follower(x), before)
    assert (follower.mean.tolist(), follower.std.tolist(), follower.count.tolist()) == ([0] * K, [1] * K, [1] * K)


def test_a_mirror_is_another_head_of_the_same_kind_and_size():
    head = randomized()
    for wrong in (head, randomized(RunningNormHead), randomized(output_dim=K + 1)):
        with pytest.raises(ValueError, match="mirror is another PopArtValueHead with 2 outputs"):
            head.mirror(wrong)


def test_an_optimiser_tracked_twice_is_rescaled_once():
    once, twice = (PopArtValueHead(4, dtype=torch.float64) for _ in range(2))
    for head, calls in ((once, 1), (twice, 2)):
        torch.manual_seed(0)
        head.optimizer = optimizer = Adam(head.parameters())
        for _ in range(calls):
            head.track(optimizer)
        head.update(torch.randn(9).double())
        head.loss(torch.randn(9, 4).double(), torch.randn(9).double()).mean().backward()
        optimizer.step()
        head.update(100 * torch.randn(9).double())
    for ours, theirs in zip(once.optimizer.state.values(), twice.optimizer.state.values(), strict=True):
        assert_close(ours, theirs, rtol=0, atol=0)
