"""rl_games on a task: prints one RESULT line. Usage: rlgames_ppo.py TASK SEED

Values are standardised, as in most of its own settings, and clipped on that axis. Adam's eps is 1e-8, which it has
fixed. Where a time limit ends an episode, it takes the value of the observation before for that of the last. Networks
are compiled, as it comes, which takes seconds at the beginning and less once torch has kept what it compiled.
"""

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import gymnasium as gym
from rl_games.common import env_configurations, vecenv
from rl_games.common.algo_observer import AlgoObserver
from rl_games.common.ivecenv import IVecEnv
from rl_games.torch_runner import Runner
from tasks import HIDDEN, Meter, arguments
from watched_envs import WatchedEnvs

task, seed = arguments()
meter = Meter(task)


class Environments(IVecEnv):
    def __init__(self) -> None:
        self.env = WatchedEnvs(task, meter)

    def reset(self):
        return self.env.reset(seed=seed)[0]

    def step(self, actions):
        observation, reward, terminated, truncated, _ = self.env.step(actions)
        return observation, reward, terminated | truncated, {"time_outs": truncated}

    def get_env_info(self):
        env = self.env
        return {"observation_space": env.single_observation_space, "action_space": env.single_action_space}


class Watch(AlgoObserver):
    def after_print_stats(self, frame, epoch_num, total_time):
        meter.iteration(epoch_num * task.rollout)


continuous = isinstance(gym.make(task.env_id).action_space, gym.spaces.Box)
vecenv.register("watched", lambda *_, **__: Environments())
env_configurations.register("task", {"vecenv_type": "watched", "env_creator": None})
default = {"name": "default"}
gaussian = {
    "mu_activation": "None",
    "sigma_activation": "None",
    "mu_init": default,
    "sigma_init": {"name": "const_initializer", "val": 0},
    "fixed_sigma": True,  # a parameter, and no output of the network
}
settings = {
    "seed": seed,
    "torch_threads": 1,
    "algo": {"name": "a2c_continuous" if continuous else "a2c_discrete"},
    "model": {"name": "continuous_a2c_logstd" if continuous else "discrete_a2c"},
    "network": {
        "name": "actor_critic",
        "separate": True,
        "mlp": {"units": list(HIDDEN), "activation": "tanh", "initializer": default},
        "space": {"continuous": gaussian} if continuous else {"discrete": {}},
    },
    "config": {
        "name": "task",
        "env_name": "task",
        "device": "cpu",
        "device_name": "cpu",
        "num_actors": task.num_envs,
        "horizon_length": task.num_steps,
        "minibatch_size": task.rollout // task.minibatches,
        "mini_epochs": task.epochs,
        "max_epochs": task.iterations,
        "learning_rate": task.learning_rate,
        "lr_schedule": "linear",
        "gamma": task.gamma,
        "tau": task.lam,
        "e_clip": task.clip_range,
        "clip_value": True,
        "critic_coef": 2 * task.value_coef,  # of half the squared error
        "bounds_loss_coef": 0.0,
        "entropy_coef": task.entropy_coef,
        "truncate_grads": True,
        "grad_norm": task.max_grad_norm,
        "normalize_advantage": True,
        "normalize_input": task.normalize_observation,
        "normalize_value": True,
        "value_bootstrap": True,
        "reward_shaper": {},
        "print_stats": False,
        "save_best_after": task.iterations,
    },
}
runner = Runner(Watch())
runner.load({"params": settings})
with tempfile.TemporaryDirectory() as directory:
    os.chdir(directory)
    runner.run({"train": True})
    meter.finish()
    os.chdir("/")
