"""Two processes that share their statistics equal one process that sees everything."""

import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from family import KINDS, D, randomized
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from levelhead.values import ValueNormalizer, local

K, ROUNDS, SPLIT = 2, 4, 5  # rows before SPLIT are those of rank 0, but in one round all are those of rank 1
HEADS = {kind.__name__: kind for kind in KINDS}
FORMS = ("plain", "masked", "tasks")


def head_of(kind):
    torch.manual_seed(0)
    return randomized(HEADS[kind], K, beta=0.9)


def batch_of(form, index):
    torch.manual_seed(index)
    shape = (17,) if form == "tasks" else (17, K)
    targets = torch.randn(shape, dtype=torch.float64)
    targets[:SPLIT] += 1e3
    batch = {"targets": 100.0**index * targets}
    if form == "tasks":
        batch["task"] = (torch.arange(17) >= SPLIT).long()  # each rank has a task of its own
    if form == "masked":
        batch |= {"mask": torch.rand(shape) < 0.7, "weights": torch.rand(17, dtype=torch.float64)}
    return batch


def share_of(rank, batch, index):
    split = 0 if index == 2 else SPLIT
    return {name: x[:split] if rank == 0 else x[split:] for name, x in batch.items()}


class Critic(torch.nn.Module):
    """A trunk and a head; `forward` is the loss, so that DistributedDataParallel sees all of it."""

    def __init__(self, kind):
        super().__init__()
        self.head = head_of(kind)
        self.trunk = torch.nn.Sequential(torch.nn.Linear(3, D, dtype=torch.float64), torch.nn.Tanh())

    def forward(self, x, y):
        return self.head.loss(self.trunk(x), y).mean()


def learn(module, critic, rows, reduce):
    """A few steps of `module`, which is `critic` or wraps it, on these rows of every batch; the critic's state."""
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01, eps=1e-3)
    critic.head.track(optimizer)
    torch.manual_seed(0)
    for growth in (1.0, 100.0, 1e4):
        x = torch.randn(16, 3, dtype=torch.float64)
        y = growth * (torch.randn(16, K, dtype=torch.float64) + x[:, :1] + 2)
        critic.head.update(y[rows], reduce=reduce)
        for _ in range(2):
            optimizer.zero_grad()
            module(x[rows], y[rows]).backward()
            optimizer.step()
    return critic.state_dict()


def refusal(call, *args, **options):
    try:
        call(*args, **options)
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(rank, init, out):
    """What one of the two processes does; `out` receives all that the tests look at."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=2)

    def over_ranks(x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    result = {"merged": {}, "learned": {}, "refused": {}, "after refusal": {}}
    for kind in HEADS:
        for form in FORMS:
            head = head_of(kind)
            for index in range(ROUNDS):
                head.update(**share_of(rank, batch_of(form, index), index), reduce=over_ranks)
            result["merged"][kind, form] = head.state_dict()
        critic = Critic(kind)
        half = slice(8) if rank == 0 else slice(8, 16)
        result["learned"][kind] = learn(DistributedDataParallel(critic), critic, half, over_ranks)
        head, targets = head_of(kind), torch.ones(3, K)
        for method in ("update", "adopt", "observe"):
            result["refused"][kind, method] = refusal(getattr(head, method), targets)
        targets[0, 1] = torch.inf if rank else 1.0
        result["refused"][kind, "non-finite"] = refusal(head.update, targets, reduce=over_ranks)
        result["after refusal"][kind] = head.state_dict()
    norm = ValueNormalizer()
    result["refused"]["ValueNormalizer", "update"] = refusal(norm.update, torch.ones(3))
    norm.update(torch.tensor([rank, rank + 2.0]), reduce=local)
    result["alone"] = norm.mean.item()
    torch.save(result, out)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    command = [sys.executable, __file__, (folder / "store").as_uri()]
    processes = [subprocess.Popen([*command, str(rank), str(out)]) for rank, out in enumerate(outs)]
    try:
        assert [process.wait(timeout=90) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    return [torch.load(out, weights_only=False) for out in outs]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", HEADS)
def test_merged_statistics_and_layer_equal_one_process_on_everything(ranks, kind, form):
    alone = head_of(kind)
    for index in range(ROUNDS):
        alone.update(**batch_of(form, index))
    for rank in ranks:
        assert_close(dict(rank["merged"][kind, form]), dict(alone.state_dict()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", HEADS)
def test_ranks_agree_to_the_last_bit(ranks, kind, form):
    one, other = (dict(rank["merged"][kind, form]) for rank in ranks)
    assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", HEADS)
def test_data_parallel_learning_equals_one_process_on_the_union(ranks, kind):
    critic = Critic(kind)
    alone = learn(critic, critic, slice(16), local)
    one, other = (dict(rank["learned"][kind]) for rank in ranks)
    assert_close(one, other, rtol=0, atol=0)
    assert_close(one, dict(alone), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["update", "adopt", "observe"])
@pytest.mark.parametrize("kind", HEADS)
def test_where_a_process_group_exists_a_missing_reduce_is_an_error(ranks, kind, method):
    for rank in ranks:
        assert rank["refused"][kind, method].startswith("RuntimeError: a process group exists")
        assert rank["refused"]["ValueNormalizer", "update"].startswith("RuntimeError: a process group exists")


@pytest.mark.parametrize("kind", HEADS)
def test_a_non_finite_target_on_one_rank_is_an_error_on_every_rank_and_changes_nothing(ranks, kind):
    for rank in ranks:
        assert rank["refused"][kind, "non-finite"].startswith("ValueError: non-finite target for output 1;")
        assert_close(dict(rank["after refusal"][kind]), dict(head_of(kind).state_dict()), rtol=0, atol=0)


def test_local_opts_out_of_merging(ranks):
    assert [rank["alone"] for rank in ranks] == [1.0, 2.0]


if __name__ == "__main__":
    work(int(sys.argv[2]), sys.argv[1], sys.argv[3])
