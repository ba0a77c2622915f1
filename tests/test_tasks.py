"""One policy for several tasks: everything that has a scale is kept apart by task, and nothing else is."""

import json
from copy import deepcopy
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.testing import assert_close

import levelhead as lh
from levelhead.builders import build_policy, build_trainer
from levelhead.config import HeadConfig, OptimizerConfig, PPOConfig
from levelhead.errors import ConfigError
from levelhead.objectives import ClipObjective
from levelhead.schedules import constant
from toys import Duo, Noise, Switching, Tampered, config, counting_envs, make_trainer, same, snapshot

ONE_PASS = PPOConfig(epochs=1, minibatches=1)
FORGETFUL = HeadConfig(beta=constant(0.0))
BY_TASK = {
    "value/mean", "value/std", "value/target_mean", "value/target_std", "advantage/mean", "advantage/std",
    "train/explained_variance",
}  # fmt: skip


class Keep(ClipObjective):
    """Keeps every minibatch; and before the step on it, the value head's layer and what it says of each row's task."""

    def __init__(self):
        super().__init__(constant(0.2))
        self.batches, self.layers, self.views = [], [], []

    def __call__(self, new, batch, kl):
        policy = self.trainer.policy
        z = policy.value_head.forward_normalized(
            policy.critic_features(batch.observation, batch.state, batch.begins)[0]
        ).detach()
        self.batches.append(batch)
        self.layers.append(layer(policy.value_head))
        self.views.append(torch.stack([row[k] for row, k in zip(z, batch.task, strict=True)]))
        return super().__call__(new, batch, kl)


def layer(head):
    """A copy of the head's last layer, `[K, ...]`: rows are ordered by output, then by bin."""
    x = torch.cat((head.linear.weight, head.linear.bias.unsqueeze(1)), 1).detach().clone()
    return x.unflatten(0, (head.output_dim, -1))


def watched(env, **options):
    """A trainer, its minibatches, and its rollouts as they come."""
    objective, rollouts = Keep(), []
    trainer = objective.trainer = make_trainer(env, objective, **options)
    collect = trainer.collector.collect

    def keep(iteration):
        rollout = collect(iteration)
        rollouts.append(replace(rollout, **{name: x.clone() for name, x in tensors(rollout).items()}))
        return rollout

    trainer.collector.collect = keep
    return trainer, objective, rollouts


def tensors(rollout):
    """The fields of a rollout that are tensors themselves."""
    return {name: x for name, x in vars(rollout).items() if isinstance(x, torch.Tensor)}


def returns(rollout):
    """Advantages and targets in float64, by the formula."""
    floats = [x.double() for x in (rollout.reward, rollout.value, rollout.next_value)]
    return lh.gae(*floats, rollout.terminated, rollout.truncated, 0.99, 0.95)


# -- statistics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["popart", "runningnorm", "valuenorm", "hlgauss"])
def test_statistics_of_a_task_are_those_of_its_own_targets(value):
    trainer, _, rollouts = watched(Duo(), value=value, total_steps=3 * 128, head=FORGETFUL)
    head = trainer.policy.value_head
    for turn in trainer:
        _, target = returns(rollouts[-1])
        for k, name in enumerate(Duo.tasks):
            own = target[rollouts[-1].task == k]
            assert len(own) == 64
            assert_close(head.mean[k], own.mean(), rtol=1e-4, atol=1e-4 * own.std().item())
            assert_close(head.std[k], own.std(correction=0), rtol=1e-4, atol=0)
            for metric, expected in (("value/mean", head.mean), ("value/std", head.std)):
                assert turn.metrics[f"{metric}/{name}"] == expected[k].item()
        assert head.count.tolist() == [turn.iteration] * 2
    assert head.std[1] > 1e5 * head.std[0]


def test_metrics_that_have_a_scale_come_by_task_and_those_of_the_policy_for_all():
    trainer, _, rollouts = watched(Duo(), total_steps=2 * 128)
    for turn in trainer:
        assert {f"{name}/{task}" for name in BY_TASK for task in Duo.tasks} <= turn.metrics.keys()
        assert not BY_TASK & turn.metrics.keys()
        assert {"train/value_loss", "train/approx_kl", "rollout/ep_rew_mean"} <= turn.metrics.keys()
        rollout, (advantage, target) = rollouts[-1], returns(rollouts[-1])
        for k, name in enumerate(Duo.tasks):
            own = rollout.task == k
            error = (target - rollout.value)[own].var() / target[own].var()
            expected = {
                "value/target_mean": target[own].mean(),
                "value/target_std": target[own].std(correction=0),
                "advantage/mean": advantage[own].mean(),
                "advantage/std": advantage[own].std(correction=0),
                "train/explained_variance": 1 - error,
            }
            scale = expected["value/target_std"].item()
            for metric, x in expected.items():
                near = 1e-5 * (1 if "explained" in metric else scale)
                assert turn.metrics[f"{metric}/{name}"] == pytest.approx(x.item(), rel=1e-4, abs=near), metric
    means = [turn.metrics[f"rollout/ep_rew_mean/{name}"] for name in Duo.tasks]
    assert turn.metrics["rollout/ep_rew_mean"] == pytest.approx(sum(means) / 2)


def test_outputs_of_both_tasks_are_preserved_when_statistics_move():
    trainer, objective, _ = watched(Duo(), total_steps=3 * 128, ppo=ONE_PASS)
    next(trainer)
    for turn in trainer:
        assert turn.metrics["value/preservation_error"] < 1e-5
        # What the critic says before the first step is the old value, on either task's axis.
        assert_close(objective.batches[-1].old_value, objective.views[-1], rtol=1e-4, atol=1e-5)
        assert objective.views[-1].std() > 1e-3


def test_how_far_outputs_moved_is_told_in_stds_of_each_task():
    # RunningNorm lets them move. Which environment's output moves furthest in stds depends on whose std is taken.
    for scales in ((1.0, 1e6), (1e6, 1.0)):
        trainer, _, rollouts = watched(Duo(scales=scales), value="runningnorm", total_steps=3 * 128)
        next(trainer)
        trainer.learner.optimizer.learning_rates["critic"].schedule = constant(0.0)
        for turn in trainer:
            last, head = {name: x[-1] for name, x in tensors(rollouts[-1]).items()}, trainer.policy.value_head
            moved = trainer.policy.value(last["observation"], last["task"]) - last["value"]
            expected = (moved.double() / head.std[last["task"]]).abs().max().item()
            assert turn.metrics["value/preservation_error"] == pytest.approx(expected, rel=1e-4)
            assert 1e-3 < expected < 10


def test_rows_that_are_not_valid_count_for_no_task():
    trainer, objective, rollouts = watched(Switching(counting_envs("NextStep")), total_steps=100, ppo=ONE_PASS)
    for turn in trainer:
        rollout, (advantage, target), batch = rollouts[-1], returns(rollouts[-1]), objective.batches[-1]
        assert not rollout.valid.all()
        learned = batch.advantage != 0
        assert learned.sum() == rollout.valid.sum() == turn.steps
        for k, name in enumerate("abc"):
            own = rollout.valid & (rollout.task == k)
            assert turn.metrics[f"advantage/mean/{name}"] == pytest.approx(advantage[own].mean().item(), rel=1e-4)
            assert turn.metrics[f"value/target_mean/{name}"] == pytest.approx(target[own].mean().item(), rel=1e-4)
            scaled = batch.advantage[learned & (batch.task == k)]
            assert len(scaled) == own.sum()
            assert_close(scaled.std(correction=0), torch.tensor(1.0), rtol=1e-4, atol=0)


def test_one_task_with_a_name_is_trained_as_one_without():
    def run(name):
        env = Noise()
        if name:
            env.tasks, env.task = (name,), torch.zeros(8, dtype=torch.int64)
        trainer = make_trainer(env, total_steps=3 * 128)
        *_, last = trainer
        return snapshot(trainer.policy), last.metrics

    (one, metrics), (other, named) = run(None), run("alone")
    assert same(one, other)
    for name, x in metrics.items():
        if not name.startswith("time/"):
            assert named[f"{name}/alone" if name in BY_TASK else name] == x


# -- advantages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["rollout", "head", "percentile", "none"])
def test_advantages_of_a_task_are_scaled_by_its_own_spread(advantage):
    ppo = replace(ONE_PASS, advantage=advantage)
    trainer, objective, rollouts = watched(Duo(), total_steps=2 * 128, ppo=ppo, head=FORGETFUL)
    for _ in trainer:
        batch, (raw, target) = objective.batches[-1], returns(rollouts[-1])
        for k in range(2):
            own = batch.advantage[batch.task == k].double().sort().values
            mask = rollouts[-1].task == k
            x, y = raw[mask].sort().values, target[mask]
            low, high = y.quantile(torch.tensor([0.05, 0.95], dtype=y.dtype))
            if advantage == "rollout":
                assert_close(own.mean(), torch.zeros_like(own[0]), rtol=0, atol=1e-5)
                assert_close(own.std(correction=0), torch.ones_like(own[0]), rtol=1e-5, atol=0)
                x = (x - x.mean()) / x.std(correction=0)
            elif advantage == "head":
                x = x / y.std(correction=0)
            elif advantage == "percentile":
                x = x / (high - low)
            assert_close(own, x, rtol=1e-3, atol=1e-4 * x.std().item())
        if advantage == "percentile":
            break  # later ones are divided by an average


def test_a_task_without_spread_does_not_silence_the_other():
    def tamper(_, step):
        return step._replace(reward=torch.where(env.task == 0, 3.0, step.reward), terminated=torch.ones(8).bool())

    env = Duo()
    trainer, objective, _ = watched(Tampered(env, tamper), total_steps=128, ppo=ONE_PASS)
    next(trainer)
    batch = objective.batches[-1]
    assert (batch.advantage[batch.task == 0] == 0).all()
    assert_close(batch.advantage[batch.task == 1].std(correction=0), torch.tensor(1.0))


# -- a task that nobody plays ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["popart", "runningnorm", "hlgauss", "twohot", "linear"])
@pytest.mark.parametrize("played_before", [True, False])
def test_a_task_that_nobody_plays_keeps_its_statistics_and_its_output(value, played_before):
    env = Duo()
    trainer, objective, _ = watched(env, value=value, total_steps=3 * 128)
    head = trainer.policy.value_head
    if played_before:
        next(trainer)
        assert layer(head)[1].any()
    env.task = torch.zeros(8, dtype=torch.int64)
    before = {name: head.get_buffer(name)[1].clone() for name in ("mean", "var", "std", "count", "retained", "scaled")}
    rows, done = layer(head), len(objective.layers)
    turn = next(trainer)
    assert before == {name: head.get_buffer(name)[1] for name in before}
    assert head.count.tolist() == [1 + played_before, int(played_before)]
    # Before the first step, so after statistics moved; and no loss has asked the row to move since.
    assert torch.equal(objective.layers[done][1], rows[1])
    gradient = head.linear.weight.grad.unflatten(0, (2, -1))
    assert not gradient[1].any()
    assert gradient[0].any()
    assert played_before or torch.equal(layer(head)[1], rows[1])
    assert not torch.equal(layer(head)[0], rows[0])
    unknown = BY_TASK - {"value/mean", "value/std"}
    assert not {f"{name}/high" for name in unknown} & turn.metrics.keys()
    assert {f"{name}/low" for name in unknown} <= turn.metrics.keys()


def test_an_average_range_waits_for_its_task():
    env = Duo()
    trainer, *_ = watched(env, total_steps=3 * 128, ppo=PPOConfig(advantage="percentile"))
    next(trainer)
    env.task = torch.zeros(8, dtype=torch.int64)
    before = {name: x.clone() for name, x in trainer.advantage.state_dict().items()}
    next(trainer)
    for name, x in trainer.advantage.state_dict().items():
        assert (x == before[name]).tolist() == [False, True]


# -- the promise, task by task -----------------------------------------------------------------------------------

STATISTICS = ("value_head.mean", "value_head.var", "value_head.std")


@cache
def trained(value, advantage, exponent=0):
    """Policy, metrics and advantage state after a short run in which the second task's rewards are multiplied."""
    ppo = PPOConfig(epochs=2, advantage=advantage)
    options = {"value": value, "ppo": ppo, "optimizer": OptimizerConfig(learning_rate=constant(1e-2))}
    trainer = make_trainer(Duo(scales=(1.0, 2.0**exponent)), total_steps=4 * 128, **options)
    metrics = [turn.metrics for turn in trainer]
    return snapshot(trainer.policy), metrics, snapshot_of(trainer.advantage)


def snapshot_of(part):
    return {name: x.clone() for name, x in part.state_dict().items()}


@pytest.mark.parametrize("value", ["popart", "runningnorm", "hlgauss"])
@pytest.mark.parametrize("advantage", ["rollout", "head", "percentile"])
@pytest.mark.parametrize("exponent", [20, -20])
def test_one_tasks_rewards_times_a_power_of_two_train_the_same_policy(value, advantage, exponent):
    plain, plain_metrics, plain_range = trained(value, advantage)
    scaled, scaled_metrics, scaled_range = trained(value, advantage, exponent)
    factor = torch.tensor([1.0, 2.0**exponent], dtype=torch.float64)
    for name, x in plain.items():
        power = 0 if name not in STATISTICS else 2 if name.endswith("var") else 1
        assert torch.equal(scaled[name], x * factor**power if power else x), name
    for name, x in plain_range.items():
        assert torch.equal(scaled_range[name], x * factor if name == "range" else x)
    # The other task does not notice, nor do the losses.
    for one, other in zip(plain_metrics, scaled_metrics, strict=True):
        for name in one:
            if name.endswith("/low") or name.startswith(("train/", "grad/", "entropy/")):
                assert one[name] == other[name], name
    assert plain["value_head.linear.weight"].any()
    assert not torch.equal(plain["action_head.linear.weight"][0], plain["action_head.linear.weight"][1])


@pytest.mark.parametrize(("value", "advantage"), [("linear", "rollout"), ("popart", "none"), ("symlog", "rollout")])
def test_outside_the_promise_one_tasks_scale_decides_what_is_learned(value, advantage):
    name = "action_head.linear.weight"
    assert not torch.equal(trained(value, advantage)[0][name], trained(value, advantage, 20)[0][name])


# -- left and taken up again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["rollout", "percentile"])
def test_what_was_saved_goes_on_as_what_was_not(advantage):
    def trainer():
        return make_trainer(Duo(), total_steps=5 * 128, ppo=PPOConfig(epochs=2, advantage=advantage))

    def ending(trainer):
        metrics = [{k: x for k, x in turn.metrics.items() if not k.startswith("time/")} for turn in trainer]
        return metrics, snapshot(trainer.policy), snapshot_of(trainer.advantage)

    whole, resumed = trainer(), trainer()
    for _ in range(2):
        next(whole)
    whole.restart_episodes()
    state = deepcopy(whole.state_dict())
    state["progress"] = json.loads(json.dumps(state["progress"]))
    resumed.load_state_dict(state)
    one, other = ending(whole), ending(resumed)
    assert len(one[0]) == 3
    assert one[0] == other[0]
    assert same(one[1], other[1])
    assert same(one[2], other[2])


# -- environments and heads that disagree ------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [(), ("low",), ("high", "low"), ("low", "high", "higher")])
def test_a_policy_for_other_tasks_is_refused(tasks):
    env = Duo()
    settings = config(env)
    policy = build_policy(settings, env.observation_space, env.action_space, tasks=tasks)
    with pytest.raises(ConfigError, match=r"the environments play \('low', 'high'\)"):
        build_trainer(settings, env, policy)


def test_tasks_that_change_within_the_run_are_learned_by_their_own_outputs():
    trainer, objective, rollouts = watched(Switching(counting_envs("SameStep")), total_steps=100, ppo=ONE_PASS)
    for _ in trainer:
        kept, seen = rollouts[-1], objective.batches[-1]
        assert all(len(column.unique()) == 3 for column in kept.task.unbind(1))
        rows = torch.stack((kept.observation.flatten(), kept.task.flatten()), 1).tolist()
        assert sorted(torch.stack((seen.observation.flatten(), seen.task), 1).tolist()) == sorted(rows)
    assert trainer.policy.value_head.count.tolist() == [trainer.iteration] * 3


@pytest.mark.parametrize("tasks", [["low", "high"], ("low", "low")])
def test_tasks_are_a_tuple_of_different_names(tasks):
    env = Duo()
    env.tasks = tasks
    with pytest.raises(ConfigError, match="a tuple of different names"):
        make_trainer(env)


def test_a_task_without_a_name_is_refused():
    env = Noise(num_envs=2)
    env.task = torch.tensor([0, 0])
    with pytest.raises(ConfigError, match="name none"):
        make_trainer(env)


def test_preservation_is_measured_on_the_tasks_that_are_played():
    env = Duo()
    env.tasks = ("low", "high", "never")
    iterations = list(make_trainer(env, total_steps=3 * 128))
    assert "value/preservation_error" not in iterations[0].metrics
    assert all(0 <= x.metrics["value/preservation_error"] < 1e-5 for x in iterations[1:])
