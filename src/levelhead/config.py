"""The whole configuration of a run: frozen dataclasses that check themselves.

`docs/presets.md` names the sources of the defaults.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from levelhead.accelerate import Engine
from levelhead.actions import BoundsHandling
from levelhead.divergence import Check
from levelhead.envs import Backend
from levelhead.errors import ConfigError
from levelhead.estimators import Baseline, Credit
from levelhead.layers import Activation
from levelhead.networks import ImageEncoder
from levelhead.optimizer import Clipping
from levelhead.schedules import Schedule, constant
from levelhead.serialize import coerce

ValueKind = Literal["popart", "runningnorm", "valuenorm", "hlgauss", "twohot", "symlog", "sqrt", "linear"]
ObjectiveKind = Literal["clip", "kl", "trpo", "a2c", "vpg"]
TargetKind = Literal["gae", "mc", "nstep", "vtrace"]
AdvantageScale = Literal["rollout", "minibatch", "head", "percentile", "none"]
Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["float32", "tf32", "bfloat16", "float64"]
Distribution = Literal["gaussian", "tanh", "beta"]
SigmaKind = Literal["fixed", "scheduled", "independent", "conditioned"]
MemoryKind = Literal["none", "lstm", "gru"]
Place = Literal["before", "after"]
WriteFailure = Literal["stop", "warn"]
Sharing = Literal["shared", "separate"]


def _require(name: str, value: object, holds: bool, accepted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}; accepted: {accepted}")


def require_default(group: str, config: object, names: Iterable[str], reason: str, default: object = None) -> None:
    """Refuses settings that were changed, and that nothing reads.

    Args:
        group: of the settings, as written before their names.
        config: holds them.
        names: of those that nothing reads.
        reason: why.
        default: what they are compared with; the class of `config` where not given.

    Raises:
        ConfigError: one differs.
    """
    for name in names:
        if getattr(config, name) != getattr(type(config) if default is None else default, name):
            raise ConfigError(f"{group}.{name} has nothing to act on: {reason}")


def _check_group(name: str, group: "GroupConfig | OptimizerConfig") -> None:
    rate, eps, norm = group.learning_rate, group.eps, group.max_grad_norm
    _require(f"{name}.learning_rate", rate, rate is None or rate.bounds[0] >= 0, "values >= 0")
    _require(f"{name}.eps", eps, eps is None or 0 < eps < math.inf, "a positive number")
    _require(f"{name}.max_grad_norm", norm, norm is None or 0 < norm < math.inf, "a positive number")


@dataclass(frozen=True)
class EnvConfig:
    """The environments."""

    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    """Arguments for the environment's constructor, as JSON: '{"continuous": true}'."""
    workers: int = 0
    """Processes of the backend of that name; 0 for one per processor."""
    timeout: float = 60.0
    """Seconds after which a process that has not answered is replaced."""
    max_restarts: int = 10
    """Processes that may be replaced in a run; the next loss ends it."""

    def __post_init__(self) -> None:
        coerce(self, "env.")
        for name in ("workers", "max_restarts"):
            _require(f"env.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _require("env.timeout", self.timeout, 0 < self.timeout < math.inf, "a positive number of seconds")
        try:
            json.dumps(self.kwargs, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"env.kwargs is {self.kwargs}; accepted: what JSON can hold ({error})") from error


@dataclass(frozen=True)
class ParallelConfig:
    """A run on several processes, which `torchrun` starts."""

    shards: int = 0
    """Equal parts that the environments come in, each with seeds of its own, and with an equal part of every minibatch.
    Runs with as many are the same but for rounding, on however many processes. 0: one for each process."""
    timeout: float = 600.0
    """Seconds that processes wait for one that doesn't answer, an evaluation and writing a checkpoint included."""

    cutoff: float = 1.0
    """Share of the processes that must have finished their rollouts for the others to end theirs early; 1: never. What
    was not played doesn't count; how far it was depends on the clock, and so does the outcome."""

    def __post_init__(self) -> None:
        coerce(self, "parallel.")
        _require("parallel.cutoff", self.cutoff, 0 < self.cutoff <= 1, "above 0, and at most 1")
        _require("parallel.shards", self.shards, self.shards >= 0, "0 or more")
        _require("parallel.timeout", self.timeout, 0 < self.timeout < math.inf, "a positive number of seconds")


@dataclass(frozen=True)
class NetworkConfig:
    """The policy's network."""

    shared: tuple[int, ...] = ()
    """Widths of the hidden layers that actor and critic share, from the observation up."""
    actor: tuple[int, ...] = (64, 64)
    """Widths of the actor's own hidden layers."""
    critic: tuple[int, ...] = (64, 64)
    """Widths of the critic's own hidden layers."""
    activation: Activation = "tanh"
    """After every hidden layer."""
    normalize_observation: bool = False
    """Bring every real number of the observation to mean 0 and std 1, with running statistics."""
    image_encoder: ImageEncoder = "nature"
    """What reads images: bytes of at least 32 by 32. Actor and critic share it."""
    precision: Precision = "float32"
    """Of parameters and of what is computed with them. With tf32 a GPU multiplies matrices of float32 in fewer digits;
    with bfloat16 layers without memory compute in that, while parameters, memory and heads stay in float32, which pays
    where a GPU or a CPU (AVX-512 BF16, AMX) has instructions for it; float64 is for finding out what rounding does."""

    def __post_init__(self) -> None:
        coerce(self, "network.")
        for name in ("shared", "actor", "critic"):
            _require(f"network.{name}", getattr(self, name), all(w >= 1 for w in getattr(self, name)), "widths >= 1")


@dataclass(frozen=True)
class MemoryConfig:
    """What the policy remembers within an episode."""

    kind: MemoryKind = "none"
    """Long short-term memory, gated recurrent units, or nothing."""
    size: int = 128
    """Number of units."""
    place: Place = "after"
    """Before or after the layers of its torso; images are encoded before it in any case."""
    sharing: Sharing = "shared"
    """One memory in the shared torso, or one each in those of actor and critic."""

    def __post_init__(self) -> None:
        coerce(self, "memory.")
        _require("memory.size", self.size, self.size >= 1, "at least 1")
        if self.kind == "none":
            require_default("memory", self, ("size", "place", "sharing"), "memory.kind is none")


@dataclass(frozen=True)
class ActionConfig:
    """How actions are drawn."""

    distribution: Distribution = "gaussian"
    """Of real numbers: Gaussian, Gaussian squashed into the bounds by tanh, or Beta."""
    bounds: BoundsHandling = "clip"
    """What a Gaussian's actions mean: numbers of the environment clipped to its bounds, or shares of the way between
    these, -1 to 1."""
    sigma: SigmaKind = "independent"
    """The Gaussian's standard deviation: fixed, following a schedule, a free parameter, or conditioned on the state."""
    std: Schedule = constant(1.0)
    """Standard deviation at the start; its whole course where it is scheduled."""
    std_hidden: tuple[int, ...] = ()
    """Widths of hidden layers that a conditioned standard deviation has to itself."""
    log_std_bounds: tuple[float, float] | None = None
    """Bounds that its logarithm approaches smoothly, where it is learned."""
    color: float = 0.0
    """Exponent of the noise's spectrum over the steps of a rollout: 0 is white, 1 pink, 2 red."""
    gates: dict[str, dict[str, list[int]]] = field(default_factory=dict[str, dict[str, list[int]]])
    """Parts of an action that matter only for some values of another, by path: '{"1": {"0": [2]}}'."""
    sees: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """Parts of an action that see others' choices, by path, and are drawn after them: '{"move": ["unit"]}'."""

    def __post_init__(self) -> None:
        coerce(self, "action.")
        _require("action.std", self.std, self.std.bounds[0] > 0, "positive values")
        _require("action.std_hidden", self.std_hidden, all(w >= 1 for w in self.std_hidden), "widths >= 1")
        _require("action.color", self.color, 0 <= self.color <= 3, "a value in [0, 3]")
        bounds = self.log_std_bounds
        in_order = bounds is None or (len(bounds) == 2 and bounds[0] < bounds[1])
        _require("action.log_std_bounds", bounds, in_order, "a lower and a higher number")
        scheduled = self.std.shape != "constant"
        if scheduled and self.sigma != "scheduled":
            raise ConfigError(f"action.std {self.std} needs action.sigma scheduled; it is {self.sigma}")
        one_each = all(len(gate) == 1 for gate in self.gates.values())
        _require("action.gates", self.gates, one_each, "for a part one other, with the values that open it")


@dataclass(frozen=True)
class HeadConfig:
    """The value head."""

    beta: Schedule | None = None
    """Fraction of the old target statistics that an update keeps, in [0, 1); 0.98 where not given."""

    def __post_init__(self) -> None:
        coerce(self, "head.")
        if self.beta is not None:
            low, high = self.beta.bounds
            _require("head.beta", self.beta, low >= 0 and high < 1, "values in [0, 1)")


@dataclass(frozen=True)
class PPOConfig:
    """The algorithm."""

    gamma: float = 0.99
    """Discount."""
    lam: float = 0.95
    """Lambda of generalised advantage estimation and V-trace: 1 is Monte-Carlo, 0 one-step TD."""
    n_step: int = 5
    """Rewards in an n-step return."""
    epochs: int = 4
    """Passes over each rollout; of the critic alone where the objective takes the actor's step on the whole of it."""
    minibatches: int = 4
    """Parts that each pass is split into."""
    freeze_actor: int = 0
    """Iterations at the beginning in which the critic learns alone."""
    chunk: int | None = None
    """Steps that a policy with memory learns from in one piece, a divisor of num_steps; all of them where not given."""
    burn_in: int = 0
    """Steps before each such piece, but a rollout's first, that only bring its memory up to date; less than a piece."""
    clip_range: Schedule = constant(0.2)
    """How far the probability ratio may leave 1 before its gradient is cut off."""
    dual_clip: float | None = None
    """Where the advantage is negative, the ratio beyond which the gradient is cut off, 3 for example."""
    kl_target: Schedule = constant(0.01)
    """Mean divergence from the policy that acted: what the penalty of kl aims at, and the bound of trpo."""
    kl_limit: Schedule | None = None
    """Mean divergence from the policy that acted beyond which an iteration's steps end."""
    kl_check: Check = "minibatch"
    """What is compared with the limit: a minibatch's mean, before its step, or an epoch's."""
    advantage: AdvantageScale = "rollout"
    """Advantages standardised over the rollout, or over each minibatch, divided by the value head's std, divided by a
    moving average of the returns' range from 5th to 95th percentile, or left as they are; by task where there are
    several."""
    entropy_coef: Schedule = constant(0.0)
    """Weight of the entropy bonus."""
    value_coef: Schedule = constant(0.5)
    """Weight of the value loss."""
    value_clip: Schedule | None = None
    """How far a value may move from its old one before its gradient is cut off, on the normalised axis."""
    value_huber: Schedule | None = None
    """Error, on the normalised axis, from which the value loss grows in proportion to it and no longer to its
    square."""

    def __post_init__(self) -> None:
        coerce(self, "ppo.")
        _require("ppo.gamma", self.gamma, 0 <= self.gamma <= 1, "a value in [0, 1]")
        _require("ppo.lam", self.lam, 0 <= self.lam <= 1, "a value in [0, 1]")
        _require("ppo.n_step", self.n_step, self.n_step >= 1, "at least 1")
        _require("ppo.freeze_actor", self.freeze_actor, self.freeze_actor >= 0, "0 or more")
        _require("ppo.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("ppo.minibatches", self.minibatches, self.minibatches >= 1, "at least 1")
        _require("ppo.chunk", self.chunk, self.chunk is None or self.chunk >= 1, "at least 1")
        _require("ppo.burn_in", self.burn_in, self.burn_in >= 0, "0 or more")
        width = self.clip_range  # no iteration begins at a schedule's end, so that may be 0
        _require("ppo.clip_range", width, width.start > 0 and width.bounds[0] >= 0, "positive values that may end at 0")
        dual = self.dual_clip
        _require("ppo.dual_clip", dual, dual is None or 1 < dual < math.inf, "a number above 1")
        _require("ppo.kl_target", self.kl_target, self.kl_target.bounds[0] > 0, "positive values")
        if self.kl_limit is not None:
            _require("ppo.kl_limit", self.kl_limit, self.kl_limit.bounds[0] > 0, "positive values")
        elif self.kl_check != PPOConfig.kl_check:
            raise ConfigError("ppo.kl_check has nothing to act on: there is no ppo.kl_limit")
        _require("ppo.entropy_coef", self.entropy_coef, self.entropy_coef.bounds[0] >= 0, "values >= 0")
        _require("ppo.value_coef", self.value_coef, self.value_coef.bounds[0] > 0, "positive values")
        for name in ("value_clip", "value_huber"):
            width = getattr(self, name)
            _require(f"ppo.{name}", width, width is None or width.bounds[0] > 0, "positive values")


@dataclass(frozen=True)
class CriticConfig:
    """What the critic learns beside the epochs that it shares with the actor."""

    joint: bool = True
    """Whether it learns in the actor's epochs at all."""
    epochs_before: int = 0
    """Passes over each rollout of its own, before the actor's. What the two share stays as it is in these."""
    epochs_after: int = 0
    """The same, after the actor's."""
    minibatches: int | None = None
    """Parts that each of these passes is split into; as many as the actor's where not given."""

    def __post_init__(self) -> None:
        coerce(self, "critic.")
        for name in ("epochs_before", "epochs_after"):
            _require(f"critic.{name}", getattr(self, name), getattr(self, name) >= 0, "0 or more")
        own = self.epochs_before + self.epochs_after
        _require("critic.minibatches", self.minibatches, self.minibatches is None or self.minibatches >= 1, "1 or more")
        if self.minibatches is not None and not own:
            raise ConfigError("critic.minibatches has nothing to act on: the critic has no epochs of its own")
        if not self.joint and not own:
            raise ConfigError("critic.joint is False, and the critic has no epochs of its own: it would never learn")


@dataclass(frozen=True)
class AuxiliaryConfig:
    """A phase, now and then, in which the actor's layers learn to predict values while the policy stays as it is."""

    every: int = 0
    """Iterations from one phase to the next, from whose rollouts it learns; 0 for no such phase."""
    epochs: int = 6
    """Passes over these rollouts."""
    clone_coef: Schedule = constant(1.0)
    """Weight of the divergence from the policy before the phase."""

    def __post_init__(self) -> None:
        coerce(self, "auxiliary.")
        _require("auxiliary.every", self.every, self.every >= 0, "0 or more")
        _require("auxiliary.epochs", self.epochs, self.epochs >= 1, "at least 1")
        _require("auxiliary.clone_coef", self.clone_coef, self.clone_coef.bounds[0] >= 0, "values >= 0")
        if not self.every:
            require_default("auxiliary", self, ("epochs", "clone_coef"), "auxiliary.every is 0")


@dataclass(frozen=True)
class GroupConfig:
    """What one group of parameters does differently from `optimizer`; None follows it."""

    learning_rate: Schedule | None = None
    """Adam's step size."""
    eps: float | None = None
    """Adam's denominator offset."""
    max_grad_norm: float | None = None
    """Length that the group's gradient is scaled down to."""

    def __post_init__(self) -> None:
        coerce(self, "optimizer group ")


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam, and what differs between the groups of parameters."""

    learning_rate: Schedule = constant(3e-4)
    """Adam's step size."""
    eps: float = 1e-5
    """Adam's denominator offset."""
    max_grad_norm: float = 0.5
    """Length that gradients are scaled down to."""
    clip: Clipping = "separate"
    """Gradients scaled down by each group's own norm, or by that of all together."""
    weight_decay: float = 0.0
    """Share of every weight that a step takes away, times the learning rate (AdamW); biases and the like keep
    theirs."""
    warmup: int = 0
    """Iterations over which learning rates rise to their schedules."""
    kl_target: Schedule | None = None
    """Mean divergence of a minibatch from the policy that acted. Beyond twice that, the learning rates of what decides
    the actions are divided by 1.5; below half of it, multiplied."""
    shared: GroupConfig = GroupConfig()
    """The layers that actor and critic share."""
    actor: GroupConfig = GroupConfig()
    """The actor's own layers and the action head."""
    critic: GroupConfig = GroupConfig()
    """The critic's own layers and the value head."""

    def __post_init__(self) -> None:
        coerce(self, "optimizer.")
        _check_group("optimizer", self)
        for name in ("shared", "actor", "critic"):
            _check_group(f"optimizer.{name}", getattr(self, name))
        _require("optimizer.weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "0 or more")
        _require("optimizer.warmup", self.warmup, self.warmup >= 0, "0 or more")
        if self.clip == "global":
            for name in ("shared", "actor", "critic"):
                require_default(f"optimizer.{name}", getattr(self, name), ("max_grad_norm",), "the clip is global")
        if self.kl_target is not None:
            require_default("optimizer", self, ("warmup",), "optimizer.kl_target decides how learning rates rise")
            _require("optimizer.kl_target", self.kl_target, self.kl_target.bounds[0] > 0, "positive values")
            rates = [self.actor.learning_rate or self.learning_rate, self.shared.learning_rate or self.learning_rate]
            fixed = all(rate.shape == "constant" and rate.start > 0 for rate in rates)
            text = ", ".join(map(str, rates))
            _require("optimizer.learning_rate", text, fixed, "a positive constant where optimizer.kl_target adapts it")


@dataclass(frozen=True)
class Config:
    """Everything that decides how a run goes. The same config, code and machine give the same run."""

    env_id: tyro.conf.Positional[str]
    """Id in Gymnasium's registry; several, joined by +, for one policy that plays them all."""
    total_steps: int = 100_000
    """Environment steps, rounded up to whole iterations."""
    seed: int = 1
    """Decides every random number of the run."""
    value: ValueKind = "popart"
    """How the critic is kept level with the scale of the returns."""
    objective: ObjectiveKind = "clip"
    """What the actor maximises: PPO's clipped surrogate or the one with an adaptive penalty on the divergence, the
    surrogate within a trust region (TRPO), or the policy gradient (A2C, or REINFORCE)."""
    targets: TargetKind = "gae"
    """How returns are estimated: by generalised advantage estimation, to the episode's end (mc), over n steps, or by
    V-trace, anew before every epoch."""
    baseline: Baseline = "value"
    """What is subtracted from an action's return: nothing, the mean return of the other environments, or the critic's
    value."""
    credit: Credit = "to-go"
    """The rewards that count as an action's return: those of its whole episode, or those that follow it."""
    num_envs: int = 8
    """Environments stepped side by side, on all processes together."""
    num_steps: int = 128
    """Steps of each environment per rollout."""
    reward_scale: float = 1.0
    """Multiplies every reward that the learner sees; logged returns stay in the environment's own units."""
    normalize_reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return, as VecNormalize does; a levelled value
    head needs none of it."""
    clip_reward: float | None = None
    """Clip rewards to plus and minus this, after any scaling."""
    backend: Backend = "sync"
    """What runs environments given by id: Gymnasium's, one after another (sync); the vector version that one was
    registered with (vector); EnvPool (envpool, an extra); Gymnasium's in processes of their own (processes), which pays
    where steps take long; or the fastest of the others that has the environment (auto)."""
    device: Device = "auto"
    """Where networks live; auto takes a GPU if there is one."""
    engine: Engine = "auto"
    """What acts and takes gradient steps: torch; native code, which agrees with it to rounding; or whatever is fastest
    (auto). Where native code can't take the steps `native` is refused; where it can't act, torch does. With `compile`
    the steps go through torch.compile, which takes up to a minute at the start and agrees with torch to rounding too;
    auto does that in runs of 50,000 gradient steps or more, on a CPU, of small networks that native code doesn't
    know."""
    threads: int | None = None
    """CPU threads, though no more than there are processors: torch's, for the whole process, or of native code where
    that takes the gradient steps. By default two of native code's, which has no use for more, and with which results
    are the same; and one of torch's, in which small networks get slower with a second one, and results differ by
    rounding. 0: whichever is fastest, after an iteration with each power of two; one where steps are compiled, which
    is done for a number of threads."""
    overlap: bool = False
    """Let the environments go on while the policy learns: they are one iteration ahead of it, and learning corrects for
    that with clipped importance weights. Of use where the environments leave Python alone, and learning takes long."""
    double_buffer: bool = False
    """Choose actions for one half of the environments while the other half steps (Petrenko et al. 2020, "Sample
    Factory"). The halves are shards; without this, the same shards learn the same. Of use where environments that step
    elsewhere, as with the backends processes and envpool, take about as long as choosing does."""
    run_dir: Path | None = None
    """Where the run is written; runs/<env>/<UTC time>-s<seed> where not given."""
    eval_every: int = 0
    """Environment steps between greedy evaluations on separate environments; 0 for none."""
    eval_episodes: int = 10
    """Episodes of each evaluation."""
    checkpoint_every: int | None = None
    """Environment steps between checkpoints; a tenth of the run, but at least 50,000, where not given; 0 for the last
    one alone. Environments that cannot tell their state start new episodes at each, so that a resumed run and one that
    went on see the same: an interval in which no episode ends leaves nothing to learn of ends."""
    keep_checkpoints: int | None = None
    """How many of the last checkpoints are kept, beside the best one, checkpoints/best; all where not given. The best
    is that with the highest rollout/ep_rew_mean; where evaluations run, the highest eval/mean_return among those that
    were saved in the iteration of one."""
    write_failure: WriteFailure = "stop"
    """What follows when a checkpoint or metrics cannot be written, as on a full disk: training stops, or goes on with a
    warning. Without the checkpoint at its end it never ends well."""
    imports: Annotated[tuple[str, ...], tyro.conf.arg(name="import")] = ()
    """Modules to import first: the way to register environments of your own."""
    env: EnvConfig = EnvConfig()
    parallel: ParallelConfig = ParallelConfig()
    network: NetworkConfig = NetworkConfig()
    memory: MemoryConfig = MemoryConfig()
    action: ActionConfig = ActionConfig()
    head: HeadConfig = HeadConfig()
    ppo: PPOConfig = PPOConfig()
    critic: CriticConfig = CriticConfig()
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        coerce(self)
        for name in ("total_steps", "num_envs", "num_steps", "eval_episodes"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "eval_every"):
            _require(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("threads", "checkpoint_every"):
            number = getattr(self, name)
            _require(name, number, number is None or number >= 0, "0 or more")
        kept = self.keep_checkpoints  # the one before the last is for when that is damaged
        _require("keep_checkpoints", kept, kept is None or kept >= 2, "2 or more")
        scale = self.reward_scale
        # Beyond, float32 has no room for returns.
        _require("reward_scale", scale, 2.0**-120 <= scale <= 2.0**120, "a positive number, 2^-120 to 2^120")
        clip = self.clip_reward
        _require("clip_reward", clip, clip is None or 0 < clip < math.inf, "a positive number")
        rows = self.num_envs * self.num_steps
        shards = max(self.parallel.shards, 1)
        if self.num_envs % shards:
            raise ConfigError(f"num_envs is {self.num_envs}; accepted: a multiple of the {shards} shards")
        most = rows // shards
        accepted = f"at most {most}, one row each" + (f" from each of {shards} shards" if shards > 1 else "")
        _require("ppo.minibatches", self.ppo.minibatches, self.ppo.minibatches <= most, accepted)
        self._check_estimator()
        self._check_objective()
        self._check_auxiliary()
        if self.ppo.advantage == "minibatch" and rows < 2 * self.ppo.minibatches:
            raise ConfigError(
                f"ppo.advantage is minibatch, and some of {self.ppo.minibatches} minibatches of {rows} rows have one"
                " row alone, which would be standardised to 0"
            )
        if self.backend != "processes":
            require_default("env", self.env, ("workers", "timeout", "max_restarts"), f"backend is {self.backend}")
        if self.double_buffer and self.backend in ("sync", "vector"):
            raise ConfigError(
                f"double_buffer has nothing to act on: backend {self.backend} steps while it is waited for"
            )
        if self.eval_episodes != Config.eval_episodes and not self.eval_every:
            raise ConfigError("eval_episodes has nothing to act on: eval_every is 0")

    @property
    def checkpoint_interval(self) -> int:
        """Environment steps between checkpoints; 0 for the last one alone."""
        return max(self.total_steps // 10, 50_000) if self.checkpoint_every is None else self.checkpoint_every

    def _check_auxiliary(self) -> None:
        """Refuses a phase that would never come: it drops what it has at a checkpoint."""
        between = min(self.checkpoint_interval or self.total_steps, self.total_steps)
        most = max(1, between // (self.num_envs * self.num_steps))
        accepted = f"at most {most}, the whole rollouts in {between:,} steps, from one checkpoint to the next"
        _require("auxiliary.every", self.auxiliary.every, self.auxiliary.every <= most, accepted)

    def _check_estimator(self) -> None:
        """Refuses what has no effect on, or doesn't go with, the way in which returns are estimated."""
        ppo = self.ppo
        if self.targets in ("mc", "nstep"):
            require_default("ppo", ppo, ("lam",), f"targets is {self.targets}")
        if self.targets != "nstep":
            require_default("ppo", ppo, ("n_step",), f"targets is {self.targets}")
        epochs = ppo.epochs + self.critic.epochs_before + self.critic.epochs_after
        if self.targets == "vtrace" and (epochs == 1 or self.objective in ("trpo", "vpg")):
            raise ConfigError("targets vtrace has nothing to act on: in the actor's first epoch it is gae")
        if self.baseline == "mean" and self.num_envs == 1:
            raise ConfigError("baseline mean is that of other environments, and num_envs is 1; accepted: none, value")
        if self.baseline != "value" and ppo.advantage in ("rollout", "minibatch"):
            raise ConfigError(
                f"baseline {self.baseline} has nothing to act on: ppo.advantage {ppo.advantage} centres advantages in"
                " any case; accepted with it: --ppo.advantage head, percentile or none"
            )

    def _check_objective(self) -> None:
        """Refuses what has no effect on, or doesn't go with, the objective."""
        reason, ppo = f"objective is {self.objective}", self.ppo
        if self.objective != "clip":
            require_default("ppo", ppo, ("clip_range", "dual_clip"), reason)
        if self.objective not in ("kl", "trpo"):
            require_default("ppo", ppo, ("kl_target",), reason)
        if self.objective == "a2c":
            _require("ppo.epochs", ppo.epochs, ppo.epochs == 1, "1 with objective a2c, whose gradient holds once")
        if self.objective in ("trpo", "vpg"):
            self.require_nothing_for_several_steps(reason)
        if ppo.kl_limit is not None and ppo.epochs == 1 and (ppo.minibatches == 1 or ppo.kl_check == "epoch"):
            raise ConfigError("ppo.kl_limit has nothing to act on: nothing of an iteration's steps is left to end")
        if self.objective == "trpo":
            reason += ", whose step has a length of its own"
            require_default("optimizer", self.optimizer, ("shared", "actor"), reason)

    def require_nothing_for_several_steps(self, reason: str) -> None:
        """Refuses what acts on the actor's epochs, for an objective that has none.

        Raises:
            ConfigError: such a setting was changed.
        """
        require_default("ppo", self.ppo, ("kl_limit",), f"{reason}, which takes one step")
        require_default("critic", self.critic, ("joint", "epochs_before", "epochs_after"), f"{reason}: see ppo.epochs")
        require_default("optimizer", self.optimizer, ("kl_target",), f"{reason}, which takes one step")
