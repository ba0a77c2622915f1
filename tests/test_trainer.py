"""The training loop: what is counted, when statistics move, and how it is left and taken up again."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch.testing import assert_close

from levelhead.config import (
    AdvantageScale,
    CriticConfig,
    HeadConfig,
    MemoryConfig,
    OptimizerConfig,
    PPOConfig,
    ValueKind,
)
from levelhead.envs import GymnasiumVecEnv
from levelhead.numerics import pick
from levelhead.objectives import ClipObjective
from levelhead.returns import v_trace
from levelhead.schedules import Schedule, constant
from levelhead.tree import tree_map
from parts import HostReads, Probe, normalizer_of
from toys import SMALL, Chain, Counting, Duo, Matching, Noise, Tampered, Toy, make_trainer, same, snapshot

STILL = OptimizerConfig(learning_rate=constant(0.0))
ONE_PASS = PPOConfig(epochs=1, minibatches=1)
REFUSED = [(value, "head") for value in ("linear", "twohot", "symlog", "sqrt")]  # there is no std to divide by
# The types that depend on the scale.
HEADS = {
    "valuenorm": "ValueNormHead",
    "linear": "LinearValueHead",
    "twohot": "TwoHotValueHead",
    "symlog": "TransformValueHead",
    "sqrt": "TransformValueHead",
}


class Watch(ClipObjective):
    """Keeps every minibatch, and what it finds at the very first: the critic's view before any step."""

    def __init__(self):
        super().__init__(constant(0.2))
        self.batches, self.views = [], []

    def __call__(self, new, batch, kl):
        self.batches.append(batch)
        policy = self.policy
        features, _ = policy.critic_features(batch.observation, batch.state, batch.begins)
        self.views.append(policy.value_head.forward_normalized(features).detach())
        return super().__call__(new, batch, kl)


def watched(env, **options):
    objective = Watch()
    trainer = make_trainer(env, objective, **options)
    objective.policy = trainer.policy
    return trainer, objective


def recording(env):
    """The environment, and a list that fills with its answers."""
    steps = []
    return Tampered(env, lambda _, step: steps.append(step) or step), steps


@pytest.mark.parametrize(("total", "iterations"), [(1, 1), (32, 1), (33, 2), (96, 3), (100, 4)])
def test_total_steps_are_rounded_up_to_whole_iterations(total, iterations):
    trainer = make_trainer(Noise(num_envs=2), total_steps=total)
    turns = list(trainer)
    assert [turn.iteration for turn in turns] == list(range(1, iterations + 1))
    assert [turn.step for turn in turns] == [32 * i for i in range(1, iterations + 1)]
    assert trainer.done
    assert next(trainer, None) is None


def test_only_valid_steps_count():
    envs = [lambda i=i: Counting(i) for i in range(3)]
    vector = SyncVectorEnv(envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    turns = list(make_trainer(GymnasiumVecEnv(vector), total_steps=200))
    assert all(0 < turn.steps < 16 * 3 for turn in turns)
    assert turns[-1].step == sum(turn.steps for turn in turns) == sum(len(env.received) for env in vector.envs)
    assert turns[-2].step < 200 <= turns[-1].step


@pytest.mark.parametrize("advantage", ["rollout", "none"])
def test_only_valid_rows_are_learned_from_and_counted_in_any_statistics(advantage):
    vector = SyncVectorEnv([lambda i=i: Counting(i) for i in range(3)], autoreset_mode=AutoresetMode.NEXT_STEP)
    objective, network = Probe(), replace(SMALL, normalize_observation=True)
    options = {"total_steps": 200, "network": network, "ppo": replace(ONE_PASS, advantage=advantage)}
    trainer = make_trainer(GymnasiumVecEnv(vector), objective, **options)
    for turn in trainer:
        values, probe = objective.seen[-1]
        learned = values[probe.grad > 0].double()
        assert len(learned) == turn.steps < len(values)
        assert normalizer_of(trainer.policy).count == turn.step
        if advantage == "rollout":
            assert_close(learned.mean(), torch.tensor(0.0).double(), rtol=0, atol=1e-5)
            assert_close(learned.std(correction=0), torch.tensor(1.0).double(), rtol=1e-5, atol=0)
        else:
            assert turn.metrics["advantage/mean"] == pytest.approx(learned.mean().item(), rel=1e-5)
            assert turn.metrics["advantage/std"] == pytest.approx(learned.std(correction=0).item(), rel=1e-5)


def test_stopping_and_coming_back_is_the_same_as_one_go():
    def run(leave_after):
        trainer = make_trainer(Matching(), total_steps=5 * 128)
        turns = [next(trainer) for _ in range(leave_after)]
        for turn in trainer:
            turns.append(turn)
            break
        turns += list(trainer)
        metrics = [{k: x for k, x in turn.metrics.items() if not k.startswith("time/")} for turn in turns]
        return metrics, snapshot(trainer.policy)

    whole, parts = run(0), run(2)
    assert len(whole[0]) == 5
    assert whole[0] == parts[0]
    assert same(whole[1], parts[1])


def test_the_seed_decides_everything():
    def run(seed):
        trainer = make_trainer(Matching(), seed=seed, total_steps=256)
        list(trainer)
        return snapshot(trainer.policy)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_every_iteration_shuffles_anew(monkeypatch):
    trainer, places = make_trainer(Noise(), total_steps=3 * 128), []
    learn = trainer.learner.learn
    monkeypatch.setattr(trainer.learner, "learn", lambda *given: places.append(given[3]) or learn(*given))
    list(trainer)
    assert len(set(places)) == 3


def test_parameters_are_the_same_tensors_at_the_end():
    trainer = make_trainer(Matching(), total_steps=256, network=replace(SMALL, normalize_observation=True))
    before = {name: x.data_ptr() for name, x in trainer.policy.state_dict().items()}
    list(trainer)
    assert {name: x.data_ptr() for name, x in trainer.policy.state_dict().items()} == before


@pytest.mark.parametrize("value", ["popart", "runningnorm", "valuenorm", "hlgauss"])
def test_head_statistics_move_once_per_iteration_and_from_the_targets(value):
    env, steps = recording(Noise())
    trainer = make_trainer(env, value=value, total_steps=3 * 128, head=HeadConfig(beta=constant(0.0)))
    for turn in trainer:
        # Every episode is one step long, so the targets are the rewards; beta 0 keeps the last batch alone.
        rewards = torch.stack([step.reward for step in steps[-16:]]).double()
        head = trainer.policy.value_head
        assert head.count.item() == turn.iteration
        assert_close(head.mean, rewards.mean().view(1), rtol=1e-5, atol=1e-6)
        assert_close(head.std, rewards.std(correction=0).view(1), rtol=1e-5, atol=0.0)
        for name, expected in (("value/mean", head.mean), ("value/target_mean", head.mean), ("value/std", head.std)):
            assert turn.metrics[name] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("value", ["popart", "runningnorm", "valuenorm", "hlgauss"])
@pytest.mark.parametrize("shape", ["linear", "exponential"])
def test_the_retention_of_the_statistics_follows_its_schedule_from_start_to_end(value, shape):
    env, steps = recording(Noise())
    schedule = Schedule(0.9, 0.1, shape)
    trainer = make_trainer(env, value=value, total_steps=4 * 128, head=HeadConfig(beta=str(schedule)))
    head, betas, batches = trainer.policy.value_head, [], []
    assert head.beta == 0.98
    for _ in trainer:
        betas.append(head.beta)
        batches.append(torch.stack([step.reward for step in steps[-16:]]).double().mean())
        # What an update keeps is what its beta says: each earlier batch counts the product of the betas since.
        kept = torch.tensor([*betas[1:], 1.0]).flip(0).cumprod(0).flip(0) * (1 - torch.tensor(betas))
        assert_close(head.mean[0], (kept * torch.stack(batches)).sum() / kept.sum(), rtol=1e-4, atol=1e-6)
    assert betas == pytest.approx([schedule(p) for p in (0.0, 0.25, 0.5, 0.75)])
    assert betas[0] == 0.9
    # Where next to nothing is left to do.
    trainer.settings = replace(trainer.settings, total_steps=trainer.step + 1)
    next(trainer)
    assert head.beta == pytest.approx(0.1, abs=2e-3)


def test_a_head_that_has_learned_nothing_adopts_statistics_until_targets_spread_and_then_preserves_outputs():
    def tamper(call, step):
        # 5 throughout the first iteration; then noise around a mean that moves.
        constant = torch.full_like(step.reward, 5.0)
        return step._replace(reward=constant if call < 16 else step.reward + call)

    trainer = make_trainer(Tampered(Noise(), tamper), total_steps=3 * 128, optimizer=STILL)
    head, x = trainer.policy.value_head, torch.randn(5, 1)
    for spread in (False, True):
        next(trainer)
        assert head.scaled == spread
        assert head.linear.weight.abs().sum() == head.linear.bias == 0
        assert_close(trainer.policy.value(x), head.mean.float().expand(5))
    mean, value = head.mean.clone(), trainer.policy.value(x)
    turn = next(trainer)
    assert abs(head.mean - mean) > 0.1
    assert_close(trainer.policy.value(x), value)
    assert turn.metrics["value/preservation_error"] < 1e-5


@pytest.mark.parametrize(("gamma", "lam"), [(0.5, 1.0), (1.0, 0.5), (0.9, 0.95), (0.9, 0.0)])
def test_targets_are_made_with_the_gamma_and_lambda_of_the_config(gamma, lam):
    trainer = make_trainer(Chain(num_envs=1), total_steps=16, num_steps=16, ppo=PPOConfig(gamma, lam))
    remaining = [5, 4, 3, 2, 1] * 3 + [1]
    # A new critic predicts 0, so only rewards of 1 are summed, up to the cut.
    expected = [sum((gamma * lam) ** k for k in range(n)) for n in remaining]
    assert next(trainer).metrics["value/target_mean"] == pytest.approx(sum(expected) / 16, rel=1e-5)
    assert trainer.policy.value_head.mean.item() == pytest.approx(sum(expected) / 16, rel=1e-5)


@pytest.mark.parametrize("advantage", get_args(AdvantageScale))
def test_advantages_enter_the_loss_as_the_config_says(advantage):
    env, steps = recording(Noise())
    trainer, objective = watched(env, total_steps=128, ppo=replace(ONE_PASS, advantage=advantage))
    next(trainer)
    # One-step episodes under a critic that predicts 0: advantages are the rewards.
    r = torch.stack([step.reward for step in steps]).flatten().double()
    std = r.std(correction=0)
    low, high = r.quantile(torch.tensor([0.05, 0.95]).double())
    standard = (r - r.mean()) / std
    scaled = {"minibatch": standard, "rollout": standard, "head": r / std, "percentile": r / (high - low), "none": r}
    expected = scaled[advantage].float()
    assert_close(objective.batches[0].advantage.sort().values, expected.sort().values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_old_values_and_targets_are_expressed_under_todays_statistics(scale):
    trainer, objective = watched(Noise(scale=scale), total_steps=3 * 128, ppo=ONE_PASS)
    next(trainer)
    for _ in trainer:
        batch, view = objective.batches[-1], objective.views[-1].squeeze(-1)
        # PopArt preserves outputs: what the critic says before the first step is the old value, on either axis.
        assert_close(batch.old_value, view, rtol=1e-4, atol=1e-5)
        assert 0.5 < batch.target.std() < 2


@pytest.mark.parametrize("value", ["popart", "linear"])
@pytest.mark.parametrize("advantage", ["rollout", "none"])
def test_advantages_that_do_not_vary_leave_the_actor_alone(value, advantage):
    trainer = make_trainer(Toy(), value=value, total_steps=3 * 128, ppo=PPOConfig(advantage=advantage))
    before = snapshot(trainer.policy.network.actor)
    list(trainer)  # no fault: a standard deviation of 0 divides nothing
    assert same(before, trainer.policy.network.actor.state_dict()) == (advantage == "rollout")


def support(value, tamper, **options):
    """What the first iteration says of targets outside the bins of a head."""
    return {
        name: x
        for name, x in next(make_trainer(Tampered(Noise(**options), tamper), value=value)).metrics.items()
        if name.startswith("value/outside_support")
    }


@pytest.mark.parametrize("value", get_args(ValueKind))
def test_only_heads_with_bins_have_a_support(value):
    inside = support(value, lambda _, step: step)
    assert inside == ({"value/outside_support": 0.0} if value in ("hlgauss", "twohot") else {})


@pytest.mark.parametrize("outlier", [1e12, -1e12])
@pytest.mark.parametrize(("value", "outliers"), [("hlgauss", 1), ("twohot", 3)])
def test_the_share_of_targets_outside_the_support_is_that_of_the_valid_rows(value, outliers, outlier):
    # HL-Gauss: one target among 160 lies further than 10 stds from the mean, whatever its size. Two-hot: symexp(20).
    def tamper(call, step):
        reward = torch.ones(20)
        valid = torch.arange(20) < 10
        if call < outliers:
            reward[[call, 19]] = outlier
        return step._replace(reward=reward, valid=valid)

    assert support(value, tamper, num_envs=20) == {"value/outside_support": pytest.approx(outliers / 160)}


def test_the_share_of_targets_outside_the_support_comes_by_task():
    def tamper(call, step):
        reward = torch.ones(8)
        if call in (3, 4):
            reward[[1, 3]] = 1e9  # both of the second task
        return step._replace(reward=reward, terminated=torch.ones(8).bool())

    metrics = next(make_trainer(Tampered(Duo(), tamper), value="twohot")).metrics
    assert "value/outside_support" not in metrics
    assert metrics["value/outside_support/low"] == 0.0
    assert metrics["value/outside_support/high"] == pytest.approx(4 / 64)


PAIRS = [(v, a) for v in get_args(ValueKind) for a in get_args(AdvantageScale) if (v, a) not in REFUSED]


@pytest.mark.parametrize(("value", "advantage"), PAIRS)
def test_what_a_trainer_says_of_the_rewards_scale_is_true(value, advantage):
    def run(scale):
        ppo = PPOConfig(epochs=2, minibatches=2, advantage=advantage)
        trainer = make_trainer(Matching(scale=scale), value=value, total_steps=3 * 128, ppo=ppo)
        list(trainer)
        return trainer.scale_promise, trainer.policy.action_head.linear.weight.detach()

    (promise, plain), *others = (run(scale) for scale in (1.0, 2.0**12, 2.0**-12))
    inside = value in ("popart", "runningnorm", "hlgauss") and advantage != "none"
    assert all(torch.equal(weight, plain) for _, weight in others) is inside
    assert all(said == promise for said, _ in others)
    if inside:
        assert promise == "rewards times any power of two train the same policy, bit for bit"
    else:
        through = "unscaled advantages" if advantage == "none" else HEADS[value]
        assert promise == f"the outcome depends on the reward's scale, through {through}"


@pytest.mark.parametrize("env", [Noise, Duo])
@pytest.mark.parametrize(("value", "advantage"), PAIRS)
def test_nothing_between_two_rollouts_waits_for_the_device(env, value, advantage):
    trainer = make_trainer(env(), engine="torch", value=value, ppo=replace(ONE_PASS, advantage=advantage))
    rollout = trainer.collector.collect(0)
    with HostReads() as counter:
        trainer._learn(rollout)
    assert counter.operations > 100
    assert counter.reads == []


def test_explained_variance_is_left_out_where_the_targets_do_not_vary():
    assert "train/explained_variance" not in next(make_trainer(Toy())).metrics
    assert next(make_trainer(Noise())).metrics["train/explained_variance"] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("env", [Noise, Matching])
def test_acting_and_learning_see_the_same_inputs(env):
    network = replace(SMALL, normalize_observation=True)
    for turn in make_trainer(env(), total_steps=4 * 128, network=network, ppo=ONE_PASS):
        # With one minibatch the policy has not moved when the ratios are taken.
        assert turn.metrics["train/approx_kl"] == pytest.approx(0.0, abs=1e-6)
        assert turn.metrics["train/clip_fraction"] == 0


def test_observation_statistics_are_those_of_every_observation_acted_on():
    env, steps = recording(Noise())
    trainer = make_trainer(env, total_steps=3 * 128, network=replace(SMALL, normalize_observation=True))
    first = trainer.collector._loops[0].observation[-1].clone()
    list(trainer)
    seen = torch.stack([first, *(step.observation for step in steps[:-1])]).double()
    normalizer = normalizer_of(trainer.policy)
    assert normalizer.count == seen.numel()
    assert_close(normalizer.mean, seen.mean().view(1))
    assert_close(normalizer.var, seen.var(correction=0).view(1))


def test_the_learning_rate_follows_progress_and_is_never_negative():
    schedule = Schedule(1e-3, 0.0)
    trainer = make_trainer(Noise(num_envs=2), total_steps=100, optimizer=OptimizerConfig(learning_rate=schedule))
    rates = [turn.metrics["train/learning_rate"] for turn in trainer]
    assert rates == pytest.approx([schedule(32 * i / 100) for i in range(4)], rel=1e-5)
    assert min(rates) >= 0


def test_the_reward_scale_leaves_reported_returns_in_the_environments_units():
    one, other = (next(make_trainer(Matching(), reward_scale=x)).metrics for x in (1.0, 1e3))
    assert one["rollout/ep_rew_mean"] == other["rollout/ep_rew_mean"]
    assert other["value/target_mean"] == pytest.approx(1e3 * one["value/target_mean"], rel=1e-5)


# -- targets that are made anew before every epoch ---------------------------------------------------------------


class Asked:
    """An estimator that keeps what it was asked with, and its answers."""

    def __init__(self, estimator):
        self.estimator = estimator
        self.refreshed = estimator.refreshed
        self.rollouts, self.answers = [], []

    def __call__(self, rollout, masks):
        # The rollout's tensors are overwritten by the next.
        kept = {name: getattr(rollout, name).clone() for name in ("value", "next_value", "terminated")}
        self.rollouts.append(replace(rollout, **kept))
        self.answers.append(self.estimator(rollout, masks))
        return self.answers[-1]


def asked(env, objective=None, **options):
    trainer = make_trainer(env, objective, **options)
    trainer.estimator = Asked(trainer.estimator)
    return trainer, trainer.estimator


@pytest.mark.parametrize(("targets", "times"), [("gae", 1), ("mc", 1), ("nstep", 1), ("vtrace", 1 + 3)])
def test_v_trace_alone_is_asked_again_before_every_epoch(targets, times):
    trainer, estimator = asked(Noise(), targets=targets, ppo=PPOConfig(epochs=3, minibatches=2))
    next(trainer)
    assert len(estimator.answers) == times


@pytest.mark.parametrize("critic", [CriticConfig(epochs_before=2), CriticConfig(joint=False, epochs_after=2)])
def test_so_it_is_before_the_critics_own_epochs(critic):
    trainer, estimator = asked(Noise(), targets="vtrace", ppo=PPOConfig(epochs=3, minibatches=2), critic=critic)
    next(trainer)
    assert len(estimator.answers) == 1 + 3 + 2


@pytest.mark.parametrize("env", [Chain, Duo, Noise])
@pytest.mark.parametrize("memory", ["none", "lstm"])
def test_a_policy_that_does_not_move_has_the_same_targets_again(env, memory):
    ppo = PPOConfig(epochs=2, minibatches=1)
    options = {"value": "linear", "targets": "vtrace", "optimizer": STILL, "ppo": ppo, "memory": MemoryConfig(memory)}
    trainer, estimator = asked(env(), total_steps=256, **options)
    torch.nn.init.normal_(trainer.policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    for _ in trainer:
        first, *again = estimator.answers[-3:]
        assert len(again) == 2
        values = [rollout.value for rollout in estimator.rollouts[-3:]]
        for one, other in [*zip(first, again[0], strict=True), *zip(first, again[1], strict=True), values[::2]]:
            assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


@pytest.mark.parametrize("value", get_args(ValueKind))
def test_what_follows_a_rollout_is_valued_on_the_axis_on_which_its_rows_are(value):
    # A critic that knows nothing says one number of everything; so it must of what follows the last row, or a cut.
    trainer, estimator = asked(Chain(), value=value, targets="vtrace", optimizer=STILL, total_steps=3 * 128)
    for _ in trainer:
        now = estimator.rollouts[-1]
        assert_close(now.next_value, now.value[:1].expand_as(now.value))
        assert_close(now.value, now.value[:1].expand_as(now.value))


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("env", [Noise, Duo])
def test_after_a_step_targets_are_those_of_the_policy_as_it_is_now(env, memory):
    objective = Watch()
    trainer, estimator = asked(
        env(),
        objective,
        targets="vtrace",
        optimizer=OptimizerConfig(learning_rate=constant(3e-2)),
        ppo=PPOConfig(epochs=3, minibatches=1, gamma=0.9, lam=0.8, advantage="none"),
        memory=MemoryConfig(memory),
        total_steps=256,
    )
    policy = objective.policy = trainer.policy
    torch.nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    by_hand, ask = [], estimator.estimator

    def compute(rollout, masks):
        with torch.no_grad():
            x = policy.reader(rollout.observation).flatten(0, 1)
            state = tree_map(lambda s: s[0], rollout.state)
            actor, critic = policy.features(x, state, rollout.begins)
            new = policy.action_head.evaluate(actor, rollout.action.flatten())
            task = None if rollout.task is None else rollout.task.flatten()
            value = pick(policy.value_head(critic), task).view_as(rollout.reward)
        ratio = (new.log_prob.view_as(rollout.log_prob) - rollout.log_prob).exp()
        following = rollout.next_value.clone()  # of the last row, and of cuts, as when they were collected
        goes_on = ~(rollout.terminated | rollout.truncated)[:-1]
        following[:-1] = torch.where(goes_on, value[1:], following[:-1])
        ends = rollout.terminated, rollout.truncated
        by_hand.append((v_trace(rollout.reward, value, following, *ends, ratio, 0.9, 0.8), ratio))
        return ask(rollout, masks)

    estimator.estimator = compute
    list(trainer)
    moved = [(ratio - 1).abs().max() for _, ratio in by_hand]
    assert len(by_hand) == 2 * 4
    assert max(moved[1::4]) < 1e-4  # before the first epoch
    assert min(*moved[2::4], *moved[3::4]) > 1e-2
    for ((advantage, target), _), answer in zip(by_hand, estimator.answers, strict=True):
        assert_close(answer, (advantage, target), rtol=1e-4, atol=1e-4)
    # And they are what is learned from.
    for batch, (advantage, _) in zip(objective.batches, estimator.answers[1:4], strict=False):
        assert_close(batch.advantage.sort().values, advantage.flatten().sort().values)


@pytest.mark.parametrize("targets", ["gae", "vtrace"])
def test_the_average_range_of_returns_moves_once_per_iteration(targets):
    ppo = PPOConfig(epochs=3, minibatches=2, advantage="percentile")
    trainer = make_trainer(Noise(), targets=targets, total_steps=2 * 128, ppo=ppo)
    for turn in trainer:
        assert trainer.state_dict()["advantage"]["retained"].item() == pytest.approx(0.99**turn.iteration)


@pytest.mark.parametrize("env", [Noise, Duo])
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        ("kl", {}),
        ("a2c", {"ppo": ONE_PASS}),
        ("vpg", {"targets": "mc", "baseline": "mean", "credit": "episode", "ppo": PPOConfig(advantage="head")}),
        ("clip", {"targets": "vtrace", "ppo": PPOConfig(epochs=2, advantage="minibatch", dual_clip=3.0)}),
        ("clip", {"targets": "nstep", "ppo": PPOConfig(value_huber=constant(1.0)), "critic": CriticConfig(True, 1, 1)}),
        ("clip", {"optimizer": OptimizerConfig(clip="global", weight_decay=0.1, warmup=2)}),
    ],
)
def test_nor_does_it_on_any_rung_of_the_ladder(env, objective, options):
    trainer = make_trainer(env(), objective, engine="torch", **options)
    rollout = trainer.collector.collect(0)
    with HostReads() as counter:
        trainer._learn(rollout)
    assert counter.operations > 100
    assert counter.reads == []
