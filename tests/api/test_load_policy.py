"""lh.load_policy and Policy.act: what was trained can be used."""

import shutil
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn

import levelhead as lh
from levelhead.rundir import read_info
from toys import same

OBSERVATIONS = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)


def last_checkpoint(directory):
    return directory / "checkpoints" / "step-000000000096"


@pytest.mark.parametrize("name", ["run directory", "checkpoint", "latest", "text"])
def test_what_is_loaded_acts_as_what_was_trained(tiny, workdir, name):
    config = tiny(**{"network.normalize_observation": True})
    run = lh.train("CartPole-v1", config=config)
    places = {"run directory": run.directory, "checkpoint": last_checkpoint(run.directory), "latest": "latest"}
    policy = lh.load_policy(places.get(name, str(run.directory)))
    np.testing.assert_array_equal(policy.act(OBSERVATIONS), run.policy.act(OBSERVATIONS))
    assert same(policy.state_dict(), run.policy.state_dict())
    assert not policy.training
    assert len(set(policy.act(OBSERVATIONS).tolist())) == 2


def test_an_earlier_checkpoint_is_another_policy(finished):
    earlier = lh.load_policy(finished.directory / "checkpoints" / "step-000000000032")
    assert not same(earlier.state_dict(), finished.policy.state_dict())


@pytest.mark.parametrize("place", ["run", "run/checkpoints", "run/checkpoints/step-000000000096"])
@pytest.mark.parametrize("parent", ["somewhere", "checkpoints"])
def test_a_run_is_found_from_wherever_one_stands(finished, tmp_path, monkeypatch, place, parent):
    shutil.copytree(finished.directory, tmp_path / parent / "run")
    monkeypatch.chdir(tmp_path / parent / place)
    here = {"run": ".", "run/checkpoints": "step-000000000096"}.get(place, ".")
    for name in (here, tmp_path / parent / "run", tmp_path / parent / "run" / "checkpoints" / "step-000000000096"):
        assert same(lh.load_policy(name).state_dict(), finished.policy.state_dict())


def test_loading_needs_no_environment(tiny, workdir):
    run = lh.train("Pendulum-v1", config=tiny("Pendulum-v1"))
    text = (run.directory / "config.json").read_text()
    (run.directory / "config.json").write_text(text.replace("Pendulum-v1", "Removed-v9"))
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_array_equal(lh.load_policy(run.directory).act(x), run.policy.act(x))


def test_a_policy_of_several_tasks_comes_back_with_an_output_for_each(tiny, workdir, two_tasks):
    run = lh.train(two_tasks, config=tiny(two_tasks, value="hlgauss"))
    assert read_info(run.directory).tasks == tuple(two_tasks.split("+"))
    policy = lh.load_policy(run.directory)
    assert same(policy.state_dict(), run.policy.state_dict())
    x = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(policy.act(x), run.policy.act(x))
    values = policy.values(x)
    assert values.shape == (20, 2)
    assert not torch.equal(*values.unbind(1))
    for k in range(2):
        assert torch.equal(policy.value(x, torch.full((20,), k)), values[:, k])


def test_objects_that_the_policy_was_made_of_are_asked_for_by_name(tiny, workdir):
    def network():
        return lh.Network(nn.Identity(), *(nn.Sequential(nn.Linear(4, 8), nn.Tanh()) for _ in range(2)), 8, 8)

    config = tiny(network=lh.NetworkConfig())
    run = lh.train(partial(gym.make, "CartPole-v1"), config=config, network=network(), value=lh.RunningNormHead(8))
    with pytest.raises(lh.ConfigError, match=r"pass network, value="):
        lh.load_policy(run.directory)
    policy = lh.load_policy(run.directory, network=network(), value=lh.RunningNormHead(8))
    assert same(policy.state_dict(), run.policy.state_dict())


@pytest.mark.parametrize(("name", "error"), [("nowhere", lh.ConfigError), (".", lh.CheckpointError)])
def test_what_is_no_run_is_refused(workdir, name, error):
    with pytest.raises(error, match=r"accepted: a run directory|neither a checkpoint nor a run directory"):
        lh.load_policy(name)


def test_a_device_that_is_not_there_is_refused(finished, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(lh.ConfigError, match="device is 'cuda'"):
        lh.load_policy(finished.directory, device="cuda")


# -- acting ------------------------------------------------------------------------------------------------------


def test_one_observation_gives_one_action_and_a_batch_a_batch(finished):
    batch = finished.policy.act(OBSERVATIONS)
    assert isinstance(batch, np.ndarray)
    assert batch.shape == (200,)
    single = [finished.policy.act(x) for x in OBSERVATIONS]
    assert all(x.shape == () for x in single)
    assert np.array(single).tolist() == batch.tolist()


@pytest.mark.parametrize(
    "form", [np.asarray, torch.as_tensor, np.ndarray.tolist, np.float64], ids=["array", "tensor", "list", "float64"]
)
def test_arrays_tensors_and_lists_of_any_dtype_are_taken(finished, form):
    np.testing.assert_array_equal(finished.policy.act(form(OBSERVATIONS)), finished.policy.act(OBSERVATIONS))


def test_an_observation_is_left_as_it_was_even_if_it_cannot_be_written(finished):
    x = OBSERVATIONS.copy()
    x.flags.writeable = False
    finished.policy.act(x)
    np.testing.assert_array_equal(x, OBSERVATIONS)


@pytest.mark.parametrize("shape", [(3,), (5,), (2, 3), (1, 2, 4), (), (4, 1)])
def test_an_observation_of_another_shape_is_refused(finished, shape):
    with pytest.raises(lh.ConfigError, match=r"expected \(4,\) or a batch|batch of observations"):
        finished.policy.act(np.zeros(shape, np.float32))


def test_continuous_actions_lie_within_the_bounds(tiny, workdir):
    policy = lh.train("Pendulum-v1", config=tiny("Pendulum-v1")).policy
    nn.init.normal_(policy.action_head.linear.weight, std=100.0)
    actions = policy.act(np.random.default_rng(0).normal(size=(100, 3)))
    assert actions.shape == (100, 1)
    assert np.abs(actions).max() == 2.0
    assert policy.act(np.zeros(3)).shape == (1,)


def test_acting_changes_nothing(finished):
    before = {name: x.clone() for name, x in finished.policy.state_dict().items()}
    finished.policy.act(OBSERVATIONS * 100)
    finished.policy.value(torch.tensor(OBSERVATIONS))
    assert same(before, finished.policy.state_dict())


def test_objects_that_the_run_was_made_without_are_refused(finished):
    with pytest.raises(lh.ConfigError, match="made without objects for value"):
        lh.load_policy(finished.directory, value=lh.RunningNormHead(8))
