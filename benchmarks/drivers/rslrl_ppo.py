"""RSL-RL on a task with continuous actions: prints one RESULT line. Usage: rslrl_ppo.py TASK SEED

It has no distribution over discrete actions. Where a time limit ends an episode, it takes the value of the observation
before for that of the last. Adam's eps is 1e-8, which it has fixed; observations are standardised for actor and critic
each. Its learning rate is constant or adapts to the divergence; here it is moved from outside.
"""

import contextlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from rsl_rl.env import VecEnv
from rsl_rl.runners import OnPolicyRunner
from tasks import HIDDEN, Meter, arguments
from tensordict import TensorDict
from watched_envs import WatchedEnvs

torch.set_num_threads(1)
task, seed = arguments()
meter = Meter(task)
torch.manual_seed(seed)


class Environments(VecEnv):
    cfg = {}  # noqa: RUF012  # only read, for logs
    device = "cpu"
    num_envs = task.num_envs

    def __init__(self) -> None:
        self.env = WatchedEnvs(task, meter)
        (self.num_actions,) = self.env.single_action_space.shape
        self.max_episode_length = self.env.env.envs[0].spec.max_episode_steps
        self.episode_length_buf = torch.zeros(task.num_envs, dtype=torch.long)
        self.observation, _ = self.env.reset(seed=seed)

    def get_observations(self):
        return TensorDict({"numbers": torch.from_numpy(self.observation)}, batch_size=[task.num_envs])

    def step(self, actions):
        self.observation, reward, terminated, truncated, _ = self.env.step(actions.numpy())
        ended = torch.from_numpy(terminated | truncated)
        extras = {"time_outs": torch.from_numpy(truncated)}
        return self.get_observations(), torch.from_numpy(reward), ended.float(), extras


network = {
    "class_name": "MLPModel",
    "hidden_dims": list(HIDDEN),
    "activation": "tanh",
    "obs_normalization": task.normalize_observation,
}
settings = {
    "num_steps_per_env": task.num_steps,
    "save_interval": task.iterations,
    "obs_groups": {"actor": ["numbers"], "critic": ["numbers"]},
    "actor": {**network, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 1.0}},
    "critic": network,
    "algorithm": {
        "class_name": "PPO",
        "num_learning_epochs": task.epochs,
        "num_mini_batches": task.minibatches,
        "clip_param": task.clip_range,
        "gamma": task.gamma,
        "lam": task.lam,
        "value_loss_coef": task.value_coef,
        "entropy_coef": task.entropy_coef,
        "learning_rate": task.learning_rate,
        "max_grad_norm": task.max_grad_norm,
        "schedule": "fixed",
        "normalize_advantage_per_mini_batch": True,
    },
}
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
    runner = OnPolicyRunner(Environments(), settings)
    update = runner.alg.update

    def watched():
        for group in runner.alg.optimizer.param_groups:
            group["lr"] = task.learning_rate * (1 - len(meter.marks) / task.iterations)
        losses = update()
        meter.iteration((len(meter.marks) + 1) * task.rollout)
        return losses

    runner.alg.update = watched
    runner.learn(task.iterations)
meter.finish()
