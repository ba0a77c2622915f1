"""Compiled whole, or captured in a CUDA graph, a head does what it does eagerly."""

import copy

import pytest
import torch
from family import KINDS, each, every_kind, features, state, trained
from torch.testing import assert_close

from levelhead.values import HLGaussValueHead, PopArtValueHead, TwoHotValueHead

K, N, NAN = 3, 6, float("nan")
CLOSE = {"rtol": 1e-11, "atol": 1e-11}
# Inductor imports a module of torch that torch itself has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")


RICH = [PopArtValueHead, HLGaussValueHead, TwoHotValueHead]  # what the others do is part of what these do
EACH = pytest.mark.parametrize(
    ("kind", "backend"), [(kind, "aot_eager" if kind in RICH else "eager") for kind in KINDS]
)


def whole(function, backend):
    """`function` compiled without a graph break.

    The backend `eager` traces, `aot_eager` makes the graph functional too, `inductor` generates code and takes long.
    """
    return torch.compile(function, fullgraph=True, backend=backend)


@pytest.fixture(autouse=True)
def _nothing_compiled_before_or_after():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(seed, device=None):
    torch.manual_seed(seed)
    y = 10.0**seed * (torch.randn(N, K, dtype=torch.float64) + 3)
    whole_batch = features(N), y, torch.randint(K, (N,)), torch.rand(N) < 0.7, torch.rand(N).double()
    return [x.to(device) for x in whole_batch]


def learning(head, clip=0.2):
    """What a training step asks of a head, but for its update."""

    def run(x, y, task, mask, weights):
        clipped = {"old_values": y[:, 0] / 2, "clip": clip} if head.squared else {}
        return head.loss(x, y[:, 0], task=task, mask=mask, weights=weights, **clipped), head(x)

    return run


def moving(head):
    def run(x, y, task, mask, weights):
        if isinstance(head, PopArtValueHead):
            head.update(y)
            head.observe(y + 1)
        head.update(y[:, 0] - 1, task=task, mask=mask, weights=weights)

    return run


def gradients(head, results):
    return torch.autograd.grad(sum(x.sum() for x in results), [*head.parameters()])


@EACH
def test_a_compiled_head_predicts_and_learns_as_an_eager_one(kind, backend):
    head = trained(kind, K)
    run = learning(head)
    compiled = whole(run, backend)
    for seed in range(2):
        ours, expected = compiled(*batch(seed)), run(*batch(seed))
        assert_close(ours, expected, **CLOSE)
        assert_close(gradients(head, ours), gradients(head, expected), **CLOSE)


@EACH
def test_a_compiled_update_equals_an_eager_one_and_is_compiled_once_for_all_values_of_beta(kind, backend):
    ours, eager = trained(kind, K), trained(kind, K)
    compiled = whole(moving(ours), backend)
    for seed, beta in enumerate((0.98, 0.5, 0.0, 0.9)):
        ours.beta = eager.beta = beta
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            compiled(*batch(seed))
        moving(eager)(*batch(seed))
        assert_close(dict(ours.state_dict()), dict(eager.state_dict()), **CLOSE)


def linked(kind):
    """A head, its mirror, and an optimiser of both that has made a step."""
    head, mirror = trained(kind, K), trained(kind, K, 1)
    optimizer = torch.optim.Adam([*head.parameters(), *mirror.parameters()], lr=0.01, amsgrad=True)
    head.track(optimizer).mirror(mirror)
    mirror.track(optimizer)
    x, y, *_ = batch(0)
    (head.loss(x, y).mean() + mirror.loss(x, y).mean()).backward()
    optimizer.step()
    return head, mirror, optimizer


def everything(head, mirror, optimizer):
    return {"head": state(head), "mirror": state(mirror), "moments": copy.deepcopy(optimizer.state_dict()["state"])}


FINE = {"targets": [5.0, 7.0, 6.0], "task": [0, 1, 0], "weights": [1.0, 2.0, 3.0]}
WRONG = {
    "non-finite target": {"targets": [1.0, 2.0, NAN]},
    "task ids must lie": {"task": [0, K, 0]},
    "task ids must": {"task": [0, -1, 0]},
    "weights must be finite and not": {"weights": [1.0, -1.0, 1.0]},
    "weights must be finite": {"weights": [1.0, NAN, 1.0]},
}


@pytest.mark.parametrize(
    ("kind", "backend"), [(PopArtValueHead, "aot_eager"), (TwoHotValueHead, "aot_eager"), (PopArtValueHead, "inductor")]
)
def test_a_compiled_update_refuses_wrong_values_on_a_cpu_and_changes_nothing(kind, backend):
    (head, *rest), (eager, *others) = linked(kind), linked(kind)
    update, before = whole(head.update, backend), everything(head, *rest)
    for message, wrong in WRONG.items():
        given = {name: torch.tensor(x) for name, x in {**FINE, **wrong}.items()}
        with pytest.raises(RuntimeError, match=message):
            update(**given)
        assert_close(everything(head, *rest), before, rtol=0, atol=0, msg=lambda m, name=message: f"{name}: {m}")
    for one in (update, eager.update):
        one(**{name: torch.tensor(x) for name, x in FINE.items()})
    assert_close(everything(head, *rest), everything(eager, *others), **CLOSE)


@pytest.mark.slow
@each(RICH)
def test_generated_code_does_what_eager_code_does(kind):
    ours, eager = trained(kind, K), trained(kind, K)

    def run(head, *given):
        moving(head)(*given)
        return learning(head)(*given)

    compiled = whole(lambda *given: run(ours, *given), "inductor")
    for seed in range(2):
        assert_close(compiled(*batch(seed)), run(eager, *batch(seed)), **CLOSE)
        assert_close(dict(ours.state_dict()), dict(eager.state_dict()), **CLOSE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_kind
def test_a_cuda_graph_of_a_whole_step_replays_as_the_step_runs(kind):
    captured, eager = trained(kind, K).cuda(), trained(kind, K).cuda()
    given, clip = batch(0, "cuda"), torch.tensor(0.2, device="cuda")

    def step(head, x, y, task, mask, weights):
        finite = head.observe(y)
        head.update(y[:, 0], task=task, mask=mask, weights=weights)
        results = learning(head, clip)(x, y, task, mask, weights)
        return finite, *results, *gradients(head, results)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(copy.deepcopy(captured), *given)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step(captured, *given)
    for seed, beta in enumerate((0.98, 0.5, 0.9)):
        captured.beta = eager.beta = beta
        for x, new in zip(given, batch(seed, "cuda"), strict=True):
            x.copy_(new)
        graph.replay()
        assert_close(replayed, step(eager, *given), **CLOSE)
        assert_close(dict(captured.state_dict()), dict(eager.state_dict()), **CLOSE)
