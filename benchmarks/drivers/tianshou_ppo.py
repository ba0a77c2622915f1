"""Tianshou on a task: prints one RESULT line. Usage: tianshou_ppo.py TASK SEED

Collecting and learning in turn, without its trainer, which would also test the policy. Advantages are standardised over
each minibatch, and computed once per iteration.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium as gym
import numpy as np
import torch
from tasks import HIDDEN, Meter, arguments
from tianshou.algorithm import PPO
from tianshou.algorithm.modelfree.reinforce import DiscreteActorPolicy, ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import DummyVectorEnv, VectorEnvNormObs
from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from tianshou.utils.net.discrete import DiscreteActor, DiscreteCritic
from tianshou.utils.torch_utils import policy_within_training_step, torch_train_mode

torch.set_num_threads(1)
task, seed = arguments()
meter = Meter(task)
torch.manual_seed(seed)
np.random.seed(seed)  # noqa: NPY002  # of its minibatches
single = gym.make(task.env_id)
envs = DummyVectorEnv([lambda: gym.make(task.env_id)] * task.num_envs)
envs.seed(seed)
if task.normalize_observation:
    envs = VectorEnvNormObs(envs)


def torso() -> Net:
    return Net(state_shape=single.observation_space.shape, hidden_sizes=HIDDEN, activation=torch.nn.Tanh)


if isinstance(single.action_space, gym.spaces.Box):
    actor = ContinuousActorProbabilistic(preprocess_net=torso(), action_shape=single.action_space.shape, unbounded=True)
    policy = ProbabilisticActorPolicy(
        actor=actor,
        dist_fn=lambda parameters: torch.distributions.Independent(torch.distributions.Normal(*parameters), 1),
        action_space=single.action_space,
        action_scaling=False,
        action_bound_method="clip",
    )
    critic = ContinuousCritic(preprocess_net=torso())
else:
    actor = DiscreteActor(preprocess_net=torso(), action_shape=single.action_space.n, softmax_output=False)
    policy = DiscreteActorPolicy(
        actor=actor,
        dist_fn=lambda logits: torch.distributions.Categorical(logits=logits),
        action_space=single.action_space,
    )
    critic = DiscreteCritic(preprocess_net=torso())
optimizer = AdamOptimizerFactory(lr=task.learning_rate, eps=1e-5)
optimizer.with_lr_scheduler_factory(LRSchedulerFactoryLinear(task.iterations, task.rollout, task.rollout))
ppo = PPO(
    policy=policy,
    critic=critic,
    optim=optimizer,
    eps_clip=task.clip_range,
    value_clip=True,
    advantage_normalization=True,
    vf_coef=task.value_coef,
    ent_coef=task.entropy_coef,
    max_grad_norm=task.max_grad_norm,
    gae_lambda=task.lam,
    gamma=task.gamma,
)
buffer = VectorReplayBuffer(task.rollout, task.num_envs)
collector = Collector(ppo, envs, buffer)
collector.reset()
for i in range(task.iterations):
    with policy_within_training_step(policy):
        with torch_train_mode(ppo, enabled=False):
            collected = collector.collect(n_step=task.rollout)
        with torch_train_mode(ppo):
            ppo.update(buffer=buffer, batch_size=task.rollout // task.minibatches, repeat=task.epochs)
    collector.reset_buffer(keep_statistics=True)
    meter.returns.extend(collected.returns.tolist())
    meter.iteration((i + 1) * task.rollout)
meter.finish()
