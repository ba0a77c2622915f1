"""The trainer that a config describes, and its parts."""

import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Literal

import torch
from torch import nn

from levelhead import native
from levelhead.accelerate import (
    CompiledEpochs,
    NativeActor,
    NativeCritic,
    NativeEpochs,
    acting_refusal,
    compiling_pays,
    compiling_refusal,
    is_worthwhile,
    learning_refusal,
    natively,
    valuing_refusal,
)
from levelhead.acting import Actor
from levelhead.advantages import (
    AdvantageScaling,
    HeadScaledAdvantage,
    PercentileAdvantage,
    RawAdvantage,
    StandardizedAdvantage,
)
from levelhead.auxiliary import Auxiliary
from levelhead.collector import Collector
from levelhead.config import AdvantageScale, Config, GroupConfig, require_default
from levelhead.criterion import Criterion, CriterionSettings, Loss
from levelhead.critic import Critic
from levelhead.distributed import Cutoff, Shards, rank, ranks
from levelhead.divergence import KLControl
from levelhead.envs import ShardedVecEnv, VecEnv
from levelhead.errors import ConfigError
from levelhead.estimators import GAE, Estimator, LateGAE, NStep, VTrace
from levelhead.learner import Learner
from levelhead.networks import Policy
from levelhead.objectives import (
    A2CObjective,
    ClipObjective,
    KLObjective,
    Objective,
    TrustRegionObjective,
    VPGObjective,
)
from levelhead.optimizer import AUXILIARY, GROUPS, GroupSettings, Optimizer, OptimizerSettings
from levelhead.phases import Epochs, Phase, Split
from levelhead.rewards import RewardTransform
from levelhead.schedules import Coefficient
from levelhead.threads import processors, wanted
from levelhead.trainer import Trainer, TrainerSettings
from levelhead.trust_region import TrustRegion


def build_trainer(config: Config, env: VecEnv, policy: Policy, objective: Objective | None = None) -> Trainer:
    """A trainer at its beginning; resets the environments."""
    shards = place_shards(config)
    if shards.count > 1 and env.num_envs * ranks() != config.num_envs:
        raise ConfigError(
            f"there are {env.num_envs} environments on each of {ranks()} ranks, and num_envs is {config.num_envs}"
        )
    ppo = config.ppo
    advantage = build_advantage(ppo.advantage, policy.value_head.output_dim, policy.device)
    _check_fit(config, env, policy, advantage)
    acting = deepcopy(policy) if config.overlap else policy
    estimator = build_estimator(config)
    return Trainer(
        policy,
        Collector(
            env,
            policy,
            config.num_steps,
            config.seed,
            config.reward_scale,
            chunk=ppo.chunk,
            burn_in=ppo.burn_in,
            halves=[(part, build_actor(config, acting, arrays=part.arrays)) for part in _halves(config, env)],
            critic=build_critic(config, policy),
            shards=shards,
            cutoff=Cutoff(config.parallel.cutoff) if config.parallel.cutoff < 1 and ranks() > 1 else None,
        ),
        build_learner(config, policy, objective or build_objective(config, policy.device)),
        estimator if config.engine == "torch" else natively(estimator),
        advantage,
        _reward_transform(config, env, policy),
        TrainerSettings(
            total_steps=config.total_steps,
            beta=config.head.beta,
            chunk=_chunk(config, policy),
            burn_in=ppo.burn_in,
            overlap=config.overlap,
        ),
    )


def place_shards(config: Config) -> Shards:
    """The part of a run's environments that this process steps.

    Raises:
        ConfigError: they can't be divided evenly among the ranks.
    """
    several = ranks()
    count = config.parallel.shards or several * (2 if config.double_buffer else 1)
    if count % several:
        raise ConfigError(f"there are {several} ranks; accepted: a divisor of parallel.shards, {count}")
    if config.num_envs % count:
        raise ConfigError(f"num_envs is {config.num_envs}; accepted: a multiple of the {count} shards")
    here = count // several
    if config.double_buffer and here != 2:
        raise ConfigError(f"double_buffer takes two shards in turn; with {count} in all each process has {here}")
    return Shards(count, here * rank(), here)


def _halves(config: Config, env: VecEnv) -> Sequence[VecEnv]:
    """What is stepped in turn."""
    if not config.double_buffer:
        return (env,)
    if not isinstance(env, ShardedVecEnv):
        raise ConfigError("double_buffer needs environments given by id or function, which two halves can be made of")
    return env.parts


def _check_fit(config: Config, env: VecEnv, policy: Policy, advantage: AdvantageScaling) -> None:
    """Refuses settings that have nothing to act on in this policy, and environments for which it wasn't made.

    Raises:
        ConfigError: it names the setting.
    """
    ppo = config.ppo
    head = policy.value_head
    if not head.squared:
        reason = f"the loss of {type(head).__name__} is a cross-entropy"
        require_default("ppo", ppo, ("value_clip", "value_huber"), reason)
    if type(env.tasks) is not tuple or len(set(env.tasks)) < len(env.tasks):
        raise ConfigError(f"the environments' tasks are {env.tasks!r}; accepted: a tuple of different names")
    if env.task is not None and not env.tasks:
        raise ConfigError("the environments say which task they play, and name none in `tasks`")
    if policy.tasks != env.tasks:
        raise ConfigError(f"the policy was made for tasks {policy.tasks}; the environments play {env.tasks}")
    if config.overlap and policy.remembers:
        raise ConfigError("overlap doesn't go with memory, which would be that of a policy from before")
    if config.parallel.cutoff < 1:
        for name, holds in (
            ("overlap", config.overlap),
            ("double_buffer", config.double_buffer),
            ("normalize_reward", config.normalize_reward),
        ):
            if holds:
                raise ConfigError(f"parallel.cutoff doesn't go with {name}")
    if config.overlap and config.targets not in ("gae", "vtrace"):
        raise ConfigError(f"overlap is corrected for in targets gae and vtrace; they are {config.targets}")
    if ppo.entropy_coef.bounds != (0.0, 0.0) and not policy.action_head.entropy_learned:
        raise ConfigError("ppo.entropy_coef has nothing to act on: nothing that is learned decides the entropy")
    for name, used in (
        ("head.beta", config.head.beta is not None),
        (f"ppo.advantage {ppo.advantage!r}", advantage.needs_statistics),
    ):
        if used and not head.has_statistics:
            raise ConfigError(f"{name} has nothing to act on: {type(head).__name__} keeps no statistics")
    for name in GROUPS:
        if name not in policy.groups() and getattr(config.optimizer, name) != GroupConfig():
            raise ConfigError(f"optimizer.{name} has nothing to act on: the network has no such parameters")


def _reward_transform(config: Config, env: VecEnv, policy: Policy) -> RewardTransform | None:
    if not config.normalize_reward and config.clip_reward is None:
        return None
    if config.normalize_reward and env.tasks:
        raise ConfigError("normalize_reward has one scale for all rewards, and the environments play several tasks")
    head = policy.value_head
    if config.normalize_reward and head.has_statistics:
        warnings.warn(
            f"normalize_reward and {type(head).__name__} both level the scale of returns. The head alone is enough, and"
            " keeps values in reward units; without it, --value linear goes with --normalize-reward.",
            stacklevel=3,
        )
    return RewardTransform(env.num_envs, config.ppo.gamma, config.normalize_reward, config.clip_reward, policy.device)


def build_advantage(kind: AdvantageScale, tasks: int, device: torch.device) -> AdvantageScaling:
    """How advantages are scaled."""
    match kind:
        case "rollout" | "minibatch":
            return StandardizedAdvantage()
        case "head":
            return HeadScaledAdvantage()
        case "percentile":
            return PercentileAdvantage(tasks, device)
        case "none":
            return RawAdvantage()


def build_objective(config: Config, device: torch.device) -> Objective:
    """What the actor maximises."""
    ppo = config.ppo
    match config.objective:
        case "clip":
            return ClipObjective(ppo.clip_range, device, ppo.dual_clip)
        case "kl":
            return KLObjective(ppo.kl_target, device)
        case "trpo":
            return TrustRegionObjective(ppo.kl_target, device)
        case "a2c":
            return A2CObjective()
        case "vpg":
            return VPGObjective()


def build_estimator(config: Config) -> Estimator:
    """How advantages and value targets are computed."""
    ppo, baseline, credit = config.ppo, config.baseline, config.credit
    match config.targets:
        case "gae" if config.overlap:
            return LateGAE(ppo.gamma, baseline, credit, ppo.lam)
        case "gae":
            return GAE(ppo.gamma, baseline, credit, ppo.lam)
        case "mc":
            return GAE(ppo.gamma, baseline, credit, 1.0)
        case "nstep":
            return NStep(ppo.gamma, baseline, credit, ppo.n_step)
        case "vtrace":
            return VTrace(ppo.gamma, baseline, credit, ppo.lam)


def build_learner(config: Config, policy: Policy, objective: Objective) -> Learner:
    """How actor and critic learn from a rollout."""
    ppo, critic, auxiliary = config.ppo, config.critic, config.auxiliary
    if isinstance(objective, TrustRegionObjective | VPGObjective):
        config.require_nothing_for_several_steps(f"the objective is a {type(objective).__name__}")
    control = KLControl(ppo.kl_limit, ppo.kl_check, config.optimizer.kl_target, policy.device)
    settings = CriterionSettings(
        entropy_coef=ppo.entropy_coef,
        value_coef=ppo.value_coef,
        value_clip=ppo.value_clip,
        value_huber=ppo.value_huber,
        standardize=ppo.advantage == "minibatch",
    )
    criterion = Criterion(policy, objective, settings, kl=objective.needs_kl or control.needs_kl)
    layer = _auxiliary_layer(policy) if auxiliary.every else None
    optimizer = _build_optimizer(config, policy, layer)

    watched = control if control.needs_kl else None
    engine, told = _choose_engine(config, policy, learning_refusal(criterion, watched))

    def epochs(loss: Loss, split: Split, control: KLControl | None = None) -> Epochs:
        match engine:
            case "compile":
                return CompiledEpochs(loss, optimizer, split, criterion, control)
            case "native":
                threads = min(wanted(config.threads, native=True) or 1, processors())
                return NativeEpochs(loss, optimizer, split, criterion, control, threads)
            case "torch":
                return Epochs(loss, optimizer, split, control)

    def critic_epochs(count: int, minibatches: int) -> list[Phase]:
        return [epochs(criterion.critic, Split(count, minibatches))] if count else []

    split = Split(ppo.epochs, ppo.minibatches)
    fitted = critic_epochs(ppo.epochs, ppo.minibatches)
    match objective:
        case TrustRegionObjective():
            phases = [TrustRegion(criterion, optimizer, objective), *fitted]
        case VPGObjective():
            phases = [epochs(criterion.actor, Split(1, 1)), *fitted]
        case _:
            phases = [epochs(criterion.joint if critic.joint else criterion.actor, split, watched)]
    own = critic.minibatches or ppo.minibatches
    before, after = critic_epochs(critic.epochs_before, own), critic_epochs(critic.epochs_after, own)
    phases, frozen = [*before, *phases, *after], [*before, *fitted, *after]
    later: list[Phase] = []
    if layer is not None:
        clone_coef = Coefficient(auxiliary.clone_coef, policy.device)
        own_split = Split(auxiliary.epochs, ppo.minibatches)
        later.append(Auxiliary(criterion, layer, optimizer, own_split, auxiliary.every, clone_coef))
    together = any(isinstance(phase, Epochs) and len(phase.groups) > 1 for phase in (*phases, *later))
    if config.optimizer.clip == "global" and not together:
        raise ConfigError("optimizer.clip 'global' has nothing to act on: no step moves several groups of parameters")
    in_torch = ["the trust region"] * isinstance(objective, TrustRegionObjective) + ["the auxiliary phase"] * len(later)
    if in_torch and engine != "torch":
        told += f"; {' and '.join(in_torch)} by torch"
    return Learner(
        criterion,
        optimizer,
        control,
        phases,
        later,
        frozen,
        ppo.freeze_actor,
        config.seed,
        told,
        place_shards(config),
        config.num_envs // ranks(),
    )


def _choose_engine(
    config: Config, policy: Policy, refusal: str | None
) -> tuple[Literal["torch", "native", "compile"], str]:
    """What takes the gradient steps, and that for people to read.

    Args:
        config, policy: of the run.
        refusal: why native code can't.

    Raises:
        ConfigError: the engine that was asked for can't.
    """

    def unfit(reason: str, *others: str) -> ConfigError:
        return ConfigError(
            f"engine is {config.engine}, which doesn't go with this run: {reason}; accepted: auto, torch"
            + "".join(f", {other}" for other in others)
        )

    reason = _why_torch(config, policy, refusal)
    if config.engine == "native" and reason is not None:
        raise unfit(reason, *(["compile"] if compiling_refusal(policy) is None else []))
    if config.engine == "compile":
        if (uncompiled := compiling_refusal(policy)) is not None:
            raise unfit(uncompiled)
        return "compile", "torch.compile"
    if reason is None:
        return "native", _named(reason)
    pays = config.engine == "auto" and compiling_pays(policy, _gradient_steps(config))
    if pays and compiling_refusal(policy) is None:
        return "compile", f"torch.compile, as the run is long: {reason}; the first takes up to a minute"
    return "torch", _named(reason)


def _gradient_steps(config: Config) -> int:
    """So many a run of PPO takes, its critic's own left out."""
    iterations = -(-config.total_steps // (config.num_envs * config.num_steps))
    return iterations * config.ppo.epochs * config.ppo.minibatches


def build_actor(config: Config, policy: Policy, *, arrays: bool) -> Actor:
    """What chooses actions in the stepping loop; as arrays, or tensors."""
    reason = _why_torch(config, policy, acting_refusal(policy))
    if reason is not None:
        return Actor(policy, _named(reason), arrays=arrays)
    loop = "" if native.has_loop() else " (steps looped over in Python, whose headers were missing at installation)"
    return NativeActor(policy, _named(None) + loop, arrays=arrays)


def build_critic(config: Config, policy: Policy) -> Critic:
    """What reads rollouts for the value head."""
    return (NativeCritic if _why_torch(config, policy, valuing_refusal(policy)) is None else Critic)(policy)


def _why_torch(config: Config, policy: Policy, refusal: str | None) -> str | None:
    """Why torch does what native code might; None where it doesn't."""
    if config.engine == "torch":
        return "it was asked for"
    if config.engine in ("auto", "compile") and refusal is None and not is_worthwhile(policy):
        return "it is faster where layers are wide"
    return refusal


def _named(reason: str | None) -> str:
    return f"native code, {native.best_instruction_set()}" if reason is None else f"torch: {reason}"


def _build_optimizer(config: Config, policy: Policy, auxiliary: nn.Linear | None) -> Optimizer:
    common = config.optimizer
    groups = {name: _group(config, getattr(common, name)) for name in GROUPS}
    settings = OptimizerSettings(
        groups=groups if auxiliary is None else {**groups, AUXILIARY: _group(config, GroupConfig())},
        max_grad_norm=common.max_grad_norm if common.clip == "global" else None,
        weight_decay=common.weight_decay,
        warmup=common.warmup,
    )
    return Optimizer(policy, settings, () if auxiliary is None else tuple(auxiliary.parameters()))


def _auxiliary_layer(policy: Policy) -> nn.Linear:
    """Predicts values, 0 at first, from the actor's features."""
    network, head = policy.network, policy.value_head
    if not [*network.shared.parameters(), *network.actor.parameters()]:
        raise ConfigError("auxiliary.every has nothing to act on: the actor has no layers below its head")
    with torch.random.fork_rng(devices=[]):
        layer = nn.Linear(network.actor_dim, head.output_dim)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer.to(policy.device, policy.dtype)


def _chunk(config: Config, policy: Policy) -> int:
    """Steps that are learned from in order: one where nothing is remembered."""
    given, steps, count = config.ppo.chunk, config.num_steps, config.ppo.minibatches
    if config.ppo.burn_in and given in (None, steps):
        raise ConfigError("ppo.burn_in has nothing to act on: ppo.chunk leaves whole rollouts in one piece")
    if config.ppo.burn_in and given is not None and config.ppo.burn_in >= given:
        raise ConfigError(f"ppo.burn_in is {config.ppo.burn_in}; accepted: less than ppo.chunk, {given}")
    if not policy.remembers:
        if given is not None:
            raise ConfigError("ppo.chunk has nothing to act on: the policy has no memory")
        return 1
    chunk = steps if given is None else given
    if steps % chunk:
        raise ConfigError(f"ppo.chunk is {chunk}; accepted: a divisor of num_steps, {steps}")
    shards = place_shards(config).count
    columns = config.num_envs * steps // chunk // shards
    if count > columns:
        raise ConfigError(
            f"ppo.minibatches is {count}; with memory, whose steps stay in order, accepted: at most {columns}, the"
            f" number of {'environments' if chunk == steps else 'chunks'}{' of a shard' if shards > 1 else ''}"
        )
    return chunk


def _group(config: Config, group: GroupConfig) -> GroupSettings:
    common = config.optimizer
    return GroupSettings(
        learning_rate=group.learning_rate or common.learning_rate,
        eps=common.eps if group.eps is None else group.eps,
        max_grad_norm=common.max_grad_norm if group.max_grad_norm is None else group.max_grad_norm,
    )
