"""Stable-Baselines3 on a task: prints one RESULT line. Usage: sb3_ppo.py TASK SEED"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from tasks import TASKS, Meter

torch.set_num_threads(1)
task, seed = TASKS[sys.argv[1]], int(sys.argv[2])
meter = Meter()


class Watch(BaseCallback):
    def _on_rollout_start(self) -> None:
        meter.iteration(self.num_timesteps)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                meter.returns.append(info["episode"]["r"])
        return True


env = make_vec_env(task.env_id, n_envs=task.num_envs, seed=seed)
if task.normalize_observation:
    env = VecNormalize(env, norm_reward=False)
model = PPO(
    "MlpPolicy",
    env,
    n_steps=task.num_steps,
    batch_size=task.num_envs * task.num_steps // task.minibatches,
    n_epochs=task.epochs,
    learning_rate=lambda left: left * task.learning_rate,
    gamma=task.gamma,
    ent_coef=task.entropy_coef,
    clip_range_vf=0.2,
    policy_kwargs={"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": torch.nn.Tanh},
    seed=seed,
    device="cpu",
)
model.learn(task.steps, callback=Watch())
meter.iteration(model.num_timesteps)
meter.finish()
