"""CartPole in torch: a task whose every step stays on the device."""

import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from torch import Tensor

from levelhead.envs.vec import EnvState, Step, VecEnv
from levelhead.tree import Tree, restore


class TensorCartPole(VecEnv):
    """Gymnasium's CartPole-v1 in torch, any number of them on any device: the same trajectories, up to rounding.

    The host waits for nothing, so final observations come with every step. Episodes begin anew in the step that ends
    one. A seed decides everything, on one kind of device.

    Args:
        num_envs: N.
        device: where they live.
        max_episode_steps: after which an episode is truncated.
    """

    def __init__(self, num_envs: int, device: torch.device | str = "cpu", max_episode_steps: int = 500) -> None:
        self.num_envs = num_envs
        self.device = torch.device(device)
        self.max_episode_steps = max_episode_steps
        self.running = f"in torch on {self.device}"
        self.single = CartPoleEnv()
        """Has the spaces, and all constants."""
        self.observation_space, self.action_space = self.single.observation_space, self.single.action_space
        self._generator = torch.Generator(self.device)
        self._reward = torch.ones(num_envs, device=self.device)
        self._state = torch.zeros(num_envs, 4, device=self.device)
        self._steps = torch.zeros(num_envs, dtype=torch.int64, device=self.device)

    def reset(self, seed: int) -> Tensor:
        """First states `[N, 4]`: position, velocity, angle in radians, and its velocity."""
        self._generator.manual_seed(seed)
        self._steps.zero_()
        self._state = self._drawn()
        return self._state

    def step(self, action: Tree) -> Step:
        last = self._moved(action.to(self.device))
        self._steps += 1
        position, angle = last[:, 0], last[:, 2]
        terminated = (position.abs() > self.single.x_threshold) | (angle.abs() > self.single.theta_threshold_radians)
        truncated = self._steps >= self.max_episode_steps
        ended = terminated | truncated
        self._state = torch.where(ended.unsqueeze(1), self._drawn(), last)
        self._steps.masked_fill_(ended, 0)
        return Step(self._state, self._reward, terminated, truncated, final_observation=last)

    def get_state(self) -> EnvState:
        own = {"state": self._state, "steps": self._steps, "generator": self._generator.get_state()}
        return EnvState({name: x.clone() for name, x in own.items()})

    def set_state(self, state: EnvState) -> None:
        """Goes on from there.

        Raises:
            ValueError: it is that of others.
        """
        own = self.get_state().tensors
        restore(own, state.tensors, "CartPole in torch")
        self._state, self._steps = own["state"], own["steps"]
        self._generator.set_state(own["generator"])

    def close(self) -> None:
        self.single.close()

    def _drawn(self) -> Tensor:
        """First states of new episodes, `[N, 4]`, uniform in [-0.05, 0.05]."""
        return torch.rand(self.num_envs, 4, generator=self._generator, device=self.device) * 0.1 - 0.05

    def _moved(self, action: Tensor) -> Tensor:
        """The states one step of Euler's method later, `[N, 4]`.

        Source: Florian 2007, "Correct equations for the dynamics of the cart-pole system", without friction.
        """
        one = self.single
        _, velocity, angle, turning = self._state.unbind(1)
        sin, cos = angle.sin(), angle.cos()
        force = torch.where(action == 1, one.force_mag, -one.force_mag)
        push = (force + one.polemass_length * turning.square() * sin) / one.total_mass
        lever = one.length * (4 / 3 - one.masspole * cos.square() / one.total_mass)
        angular = (one.gravity * sin - cos * push) / lever
        linear = push - one.polemass_length * angular * cos / one.total_mass
        rate = torch.stack((velocity, linear, turning, angular), 1)
        return self._state + one.tau * rate
