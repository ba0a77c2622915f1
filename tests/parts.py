"""A policy, a batch and a learner without environments around them."""

from dataclasses import replace

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch.utils._python_dispatch import TorchDispatchMode

from levelhead import native
from levelhead.builders import build_learner, build_objective, build_policy
from levelhead.config import Config, NetworkConfig, ObjectiveKind
from levelhead.criterion import Criterion, CriterionSettings
from levelhead.divergence import KLControl
from levelhead.learner import Learner
from levelhead.networks import ObservationNormalizer, Policy, State
from levelhead.objectives import ClipObjective, Objective
from levelhead.optimizer import GroupSettings, Optimizer, OptimizerSettings
from levelhead.phases import Epochs, Split
from levelhead.rollout import Batch
from levelhead.schedules import constant
from levelhead.tree import tree_map

OBSERVATIONS = Box(-np.inf, np.inf, (3,))
CHOICES, REALS = Discrete(4), Box(-1.0, 1.0, (3,))
GROUP = GroupSettings(learning_rate=constant(1e-2), eps=1e-5, max_grad_norm=0.5)
GROUPS = {"shared": GROUP, "actor": GROUP, "critic": GROUP, "auxiliary": GROUP}
CRITERION = CriterionSettings(entropy_coef=constant(0.1), value_coef=constant(0.5), value_clip=None)


INSTRUCTION_SETS = native.INSTRUCTION_SETS[: native.INSTRUCTION_SETS.index(native.best_instruction_set()) + 1]
"""Of native code, those that this machine has."""


def names(tasks: int) -> tuple[str, ...]:
    """Of so many tasks; a single one has none."""
    return tuple("abc"[:tasks]) if tasks > 1 else ()


def make_policy(space=CHOICES, shared=(), tasks=1, **options) -> Policy:
    """A small policy whose critic has left zero."""
    network = NetworkConfig(shared=shared, actor=(8,), critic=(8,))
    policy = build_policy(
        Config("toy", network=network, device="cpu", **options), OBSERVATIONS, space, tasks=names(tasks)
    )
    torch.nn.init.normal_(policy.value_head.linear.weight, generator=torch.Generator().manual_seed(0))
    return policy


def steep_policy(space=CHOICES, observation=OBSERVATIONS, **options) -> Policy:
    """A policy whose outputs matter beside noise."""
    policy = build_policy(Config("toy", device="cpu", **options), observation, space)
    generator = torch.Generator().manual_seed(0)
    for p in policy.parameters():
        torch.nn.init.normal_(p, std=0.5, generator=generator)
    return policy


def make_batch(policy: Policy, rows: int, seed: int = 0) -> Batch:
    """Rows with actions of a slightly different policy, and advantages that differ from row to row.

    They belong to tasks drawn at random where the policy plays several.
    """
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(rows, 3, generator=generator)
    move, advantage, target, old_value = torch.randn(4, rows, generator=generator)
    with torch.no_grad():
        features, _ = features_of(policy, observation)
        action, parameters = policy.action_head.sample(features, policy.action_head.noise((rows,), generator))
        log_prob = policy.action_head.log_prob(parameters, action)
    tasks = policy.value_head.output_dim
    task = torch.randint(tasks, (rows,), generator=generator) if tasks > 1 else None
    return batch_of(observation, action, log_prob + 0.2 * move, advantage, target, old_value, task)


def batch_of(observation, action, log_prob, advantage, target, old_value, task=None) -> Batch:
    """Rows `[B, ...]` as columns of one step each, without memory."""
    given = (observation, action, log_prob, advantage, target, old_value, task)
    x = [None if part is None else tree_map(lambda t: t.unsqueeze(0), part) for part in given]
    begins = torch.ones(1, len(log_prob), dtype=torch.bool)
    return Batch(x[0], x[1], None, *x[2:6], begins=begins, state=State((), (), ()), task=x[6])


def acted_on(policy: Policy, batch: Batch) -> Batch:
    """The same rows as if this very policy had acted, which can tell how far it has moved since."""
    rows = batch.take(torch.arange(batch.advantage.shape[1]))
    with torch.no_grad():
        features, _ = policy.features(rows.observation, rows.state, rows.begins)
        new = policy.action_head.evaluate(features, rows.action)
    parameters = tree_map(lambda x: x.detach().unsqueeze(0).clone(), new.parameters)
    return replace(batch, log_prob=new.log_prob.unsqueeze(0), parameters=parameters)


def run_torso(torso, x):
    """What a torso without memory answers."""
    return torso(x, (), None)[0]


def normalizer_of(policy: Policy) -> ObservationNormalizer:
    """The only one."""
    (normalizer,) = (module for module in policy.modules() if isinstance(module, ObservationNormalizer))
    return normalizer


def features_of(policy: Policy, x: torch.Tensor):
    """What the heads read of `[L, ...]` that the reader answered, each row the first of an episode."""
    rows = x.flatten(0, -2)
    reset = torch.ones(1, len(rows), dtype=torch.bool)
    actor, critic = policy.features(rows, policy.network.initial_state(len(rows)), reset)
    return actor.unflatten(0, x.shape[:-1]), critic.unflatten(0, x.shape[:-1])


def make_learner(
    policy: Policy,
    objective: Objective | None = None,
    seed: int = 1,
    epochs: int = 2,
    minibatches: int = 3,
    groups=GROUPS,
    **changes,
) -> Learner:
    """A learner that was never advanced; `changes` are fields of its criterion's settings."""
    criterion = Criterion(policy, objective or ClipObjective(constant(0.2)), replace(CRITERION, **changes), kl=False)
    optimizer = Optimizer(policy, OptimizerSettings(groups))
    control = KLControl(None, "minibatch", None)
    phases = [Epochs(criterion.joint, optimizer, Split(epochs, minibatches))]
    return Learner(criterion, optimizer, control, phases, later=(), frozen=(), frozen_iterations=0, seed=seed)


def configured_learner(policy: Policy, objective: Objective | ObjectiveKind = "clip", **options) -> Learner:
    """The learner that a config describes, with an objective of that name or one of your own; torch takes its steps
    where nothing else is said."""
    if isinstance(objective, str):
        objective, options["objective"] = None, objective
    config = Config("toy", device="cpu", **{"engine": "torch", **options})
    return build_learner(config, policy, objective or build_objective(config, policy.device))


def learn(learner: Learner, batch: Batch, valid=None, healthy: bool = True, iteration: int = 0):
    """`Learner.learn` with every row valid where nothing else is said."""
    valid = torch.ones_like(batch.advantage, dtype=torch.bool) if valid is None else valid.view(1, -1)
    return learner.learn(batch, valid, torch.tensor(healthy), iteration)


class Probe(ClipObjective):
    """Keeps, per minibatch, which rows it saw (by their advantages) and what each weighed in the mean."""

    def __init__(self) -> None:
        super().__init__(constant(0.2))
        self.seen = []

    def __call__(self, new, batch, kl):
        answer = super().__call__(new, batch, kl)
        probe = torch.zeros_like(answer.loss, requires_grad=True)
        self.seen.append((batch.advantage, probe))
        return answer._replace(loss=answer.loss + probe)

    def minibatches(self, batch: Batch):
        """Per minibatch: indices into `batch` (None for a row that isn't in it), and weights."""
        row = {x: i for i, x in enumerate(batch.advantage.flatten().tolist())}
        return [([row.get(x) for x in advantage.tolist()], probe.grad.tolist()) for advantage, probe in self.seen]


class HostReads(TorchDispatchMode):
    """Counts operations whose result the host must wait for, and operations altogether."""

    NAMES = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2")

    def __init__(self):
        super().__init__()
        self.reads, self.operations = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        if name in self.NAMES or any(x is not None and x.dtype == torch.bool for x in indices):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))
