"""Parameters as views of one flat tensor, and Adam on them: the same numbers as torch's own, one tensor per group."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from levelhead.flat import AdamGroup, FlatAdam, clip_, flatten

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2, bias=False)).double()


def loss(net, x):
    return net(x).square().sum() + net(x).sum()


def test_parameters_stay_the_objects_they_were_and_become_views():
    net = network()
    before, values = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
    x = torch.randn(5, 3).double()
    output = net(x)
    flat = flatten(before)
    assert all(a is b for a, b in zip(before, net.parameters(), strict=True))
    assert all(torch.equal(p, value) for p, value in zip(before, values, strict=True))
    assert torch.equal(net(x), output)
    assert torch.equal(flat.parameter, torch.cat([value.flatten() for value in values]))
    with torch.no_grad():
        flat.parameter.fill_(0.5)
    assert all((p == 0.5).all() for p in before)


def test_gradients_accumulate_into_the_flat_gradient():
    net, plain = network(), network()
    flat = flatten(list(net.parameters()))
    assert flat.parameter.grad is flat.gradient
    for x in torch.randn(2, 5, 3).double():
        loss(net, x).backward()
        loss(plain, x).backward()
        assert torch.equal(flat.gradient, torch.cat([p.grad.flatten() for p in plain.parameters()]))
    flat.gradient.zero_()
    assert all((p.grad == 0).all() for p in net.parameters())


@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e3, 1e20])
def test_clipping_shortens_what_is_too_long_and_nothing_else(scale):
    gradient = scale * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, clipped = gradient.clone(), gradient.clone()
    norm = clip_(clipped, 0.5)
    assert_close(norm, before.square().sum().sqrt(), **EXACT)
    assert_close(clipped, before * min(1.0, 0.5 / float(norm)), rtol=1e-12, atol=0.0)
    assert clipped.norm() <= 0.5 * (1 + 1e-12)


def test_a_zero_gradient_stays_zero():
    gradient = torch.zeros(5)
    assert clip_(gradient, 0.5) == 0
    assert (gradient == 0).all()


SETTINGS = {"first": (3e-4, 1e-5), "second": (1e-1, 1e-8)}


def flat_adam(parts, skip):
    groups = {
        name: AdamGroup(flatten(list(parts[name].parameters())), torch.tensor(lr, dtype=torch.float64), eps)
        for name, (lr, eps) in SETTINGS.items()
    }
    return groups, FlatAdam(groups, skip)


def parts():
    return {"first": network(1), "second": network(2)}


every_form = pytest.mark.parametrize("compiling", [False, True], ids=["kernel", "written out for compilers"])


@every_form
def test_it_steps_as_torchs_adam_does_with_every_group_at_its_own_rate_and_eps(monkeypatch, compiling):
    ours, plain = parts(), parts()
    groups, optimizer = flat_adam(ours, torch.zeros(()))
    reference = torch.optim.Adam(
        [{"params": list(plain[n].parameters()), "lr": lr, "eps": eps} for n, (lr, eps) in SETTINGS.items()],
        fused=False,
        foreach=False,
    )
    x = torch.randn(30, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for step, batch in enumerate(x):
        for name, group in groups.items():
            rate = SETTINGS[name][0] * (1 - step / len(x))
            group.learning_rate.fill_(rate)
            group.flat.gradient.zero_()
            next(g for g in reference.param_groups if g["eps"] == group.eps)["lr"] = rate
        reference.zero_grad()
        # Gradients of very different sizes, so that the two eps matter.
        for size, name in ((1e-6, "first"), (1e3, "second")):
            (size * loss(ours[name], batch)).backward()
            (size * loss(plain[name], batch)).backward()
        with monkeypatch.context() as patch:  # for ours alone
            patch.setattr(torch.compiler, "is_compiling", lambda: compiling)
            optimizer.step(SETTINGS)
        reference.step()
        for name in SETTINGS:
            for a, b in zip(ours[name].parameters(), plain[name].parameters(), strict=True):
                assert_close(a, b, rtol=1e-10, atol=1e-12)


@every_form
def test_a_skipped_step_changes_nothing_at_all(monkeypatch, compiling):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    skip = torch.zeros(())
    ours = parts()
    groups, optimizer = flat_adam(ours, skip)

    def everything():
        flats = {name: group.flat.parameter.detach() for name, group in groups.items()}
        return copy.deepcopy({**flats, **optimizer.moments()})

    def step(gradient):
        for group in groups.values():
            group.flat.gradient.fill_(gradient)
        optimizer.step(SETTINGS)

    step(1.0)
    before = everything()
    assert {x.item() for name, x in before.items() if name.endswith(".step")} == {1.0}
    skip.fill_(1.0)
    for gradient in (1.0, float("nan"), float("inf")):
        step(gradient)
        after = everything()
        assert all(torch.equal(x, after[name]) for name, x in before.items())
    skip.zero_()
    step(1.0)
    assert {x.item() for name, x in everything().items() if name.endswith(".step")} == {2.0}
    assert not any(torch.equal(x, everything()[name]) for name, x in before.items())


def test_its_state_is_named_by_group_and_holds_every_tensor_that_moves():
    groups, optimizer = flat_adam(parts(), torch.zeros(()))
    assert set(optimizer.moments()) == {f"{g}.{x}" for g in groups for x in ("step", "exp_avg", "exp_avg_sq")}
