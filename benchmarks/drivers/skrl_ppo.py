"""skrl on a task: prints one RESULT line. Usage: skrl_ppo.py TASK SEED

Values are standardised, as in its own examples, and clipped on that axis. Adam's eps is 1e-8, which skrl has fixed.
Where a time limit ends an episode, it takes the value of the next one's first observation for that of the last.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium as gym
import torch
from skrl.agents.torch.ppo import PPO, PPO_CFG
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, GaussianMixin, Model
from skrl.resources.preprocessors.torch import RunningStandardScaler
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from tasks import HIDDEN, Meter, arguments
from watched_envs import WatchedEnvs

torch.set_num_threads(1)
task, seed = arguments()
meter = Meter(task)
set_seed(seed)
env = wrap_env(WatchedEnvs(task, meter))
continuous = isinstance(env.action_space, gym.spaces.Box)
Drawn = GaussianMixin if continuous else CategoricalMixin
spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": "cpu"}


def layers(outputs: int) -> torch.nn.Sequential:
    widths = (*env.observation_space.shape, *HIDDEN)
    hidden = (part for a, b in zip(widths, HIDDEN, strict=False) for part in (torch.nn.Linear(a, b), torch.nn.Tanh()))
    return torch.nn.Sequential(*hidden, torch.nn.Linear(widths[-1], outputs))


class Actor(Drawn, Model):
    def __init__(self) -> None:
        Model.__init__(self, **spaces)
        Drawn.__init__(self)
        self.layers = layers(self.num_actions)
        self.log_std = torch.nn.Parameter(torch.zeros(self.num_actions)) if continuous else None

    def compute(self, inputs, role):
        return self.layers(inputs["observations"]), {"log_std": self.log_std} if continuous else {}


class Critic(DeterministicMixin, Model):
    def __init__(self) -> None:
        Model.__init__(self, **spaces)
        DeterministicMixin.__init__(self)
        self.layers = layers(1)

    def compute(self, inputs, role):
        return self.layers(inputs["observations"]), {}


class Watched(PPO):
    def update(self, *, timestep, timesteps):
        super().update(timestep=timestep, timesteps=timesteps)
        meter.iteration((timestep + 1) * task.num_envs)


config = PPO_CFG(
    rollouts=task.num_steps,
    learning_epochs=task.epochs,
    mini_batches=task.minibatches,
    discount_factor=task.gamma,
    gae_lambda=task.lam,
    learning_rate=task.learning_rate,
    learning_rate_scheduler=torch.optim.lr_scheduler.LinearLR,
    learning_rate_scheduler_kwargs={
        "start_factor": 1.0,
        "end_factor": 0.0,
        "total_iters": task.iterations * task.epochs,  # it steps after every epoch
    },
    value_preprocessor=RunningStandardScaler,
    value_preprocessor_kwargs={"size": 1, "device": "cpu"},
    grad_norm_clip=task.max_grad_norm,
    ratio_clip=task.clip_range,
    value_clip=task.clip_range,
    entropy_loss_scale=task.entropy_coef,
    value_loss_scale=task.value_coef,
    time_limit_bootstrap=True,
)
if task.normalize_observation:
    config.observation_preprocessor = RunningStandardScaler
    config.observation_preprocessor_kwargs = {"size": env.observation_space, "device": "cpu"}
config.experiment.write_interval = config.experiment.checkpoint_interval = 0
with tempfile.TemporaryDirectory() as directory:
    config.experiment.directory = directory
    memory = RandomMemory(memory_size=task.num_steps, num_envs=task.num_envs, device="cpu")
    agent = Watched(models={"policy": Actor(), "value": Critic()}, memory=memory, cfg=config, **spaces)
    trainer = {"timesteps": task.steps // task.num_envs, "headless": True, "disable_progressbar": True}
    SequentialTrainer(cfg=trainer, env=env, agents=agent).train()
    meter.finish()
