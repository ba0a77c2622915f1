"""How lh.train stops before its end: by a fault that is named, or by a signal; either way it saves."""

import signal
import threading
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import levelhead as lh
from levelhead import checkpoint
from toys import Tampered

pytestmark = pytest.mark.usefixtures("workdir")
CARTPOLE = partial(gym.make, "CartPole-v1")


def environments():
    return lh.GymnasiumVecEnv(SyncVectorEnv([CARTPOLE] * 2, autoreset_mode=AutoresetMode.SAME_STEP))


def broken(field, value, at):
    def tamper(call, step):
        if call == at:
            getattr(step, field)[1] = value
        return step

    return Tampered(environments(), tamper)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("field", ["reward", "observation"])
def test_what_is_not_finite_stops_training_and_is_named(tiny, outcome, metrics, workdir, field, value):
    # Step 16 + 3 of the environments lies in the second iteration.
    clean = lh.train(environments(), config=tiny(total_steps=32))
    at = 16 + 3
    with pytest.raises(
        lh.TrainingFault, match=rf"non-finite {field} of environment 1 .*iteration 2 on rank 0"
    ) as caught:
        lh.train(broken(field, value, at), config=tiny(run_dir=workdir / "broken"))
    saved = checkpoint.checkpoints(workdir / "broken")[-1]
    assert str(saved) in str(caught.value)
    assert metrics(workdir / "broken") == metrics(clean.directory)
    assert outcome(workdir / "broken") == outcome(clean.directory)


def test_a_fault_in_the_first_iteration_leaves_a_policy_as_it_was_built(tiny, workdir):
    with pytest.raises(lh.TrainingFault, match="iteration 1"):
        lh.train(broken("reward", np.nan, 2), config=tiny(run_dir=workdir / "run"))
    assert [p.name for p in checkpoint.checkpoints(workdir / "run")] == ["step-000000000000"]
    env = CARTPOLE()
    fresh = lh.load_policy(workdir / "run")
    assert not fresh.value_head.count.any()
    assert env.action_space.contains(fresh.act(env.reset(seed=1)[0]).item())
    env.close()


class Signals(gym.Wrapper):
    """Sends this process signals at given steps."""

    def __init__(self, number, steps):
        super().__init__(CARTPOLE())
        self.number, self.steps, self.t = number, steps, 0

    def step(self, action):
        self.t += 1
        if self.t in self.steps:
            # Not os.kill, which may reach another thread: Python would hear of it late, and of two signals once.
            signal.raise_signal(self.number)
        return self.env.step(action)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_training_after_the_iteration_and_everything_is_saved(tiny, metrics, number):
    before = signal.getsignal(number)
    with pytest.warns(UserWarning, match=r"interrupted at step 32; runs/\S+ has everything to go on from"):
        run = lh.train(partial(Signals, number, {20}), config=tiny(num_envs=1, num_steps=32, checkpoint_every=0))
    assert run.interrupted
    assert run.step == 32
    assert [p.name for p in checkpoint.checkpoints(run.directory)] == ["step-000000000032"]
    assert [line["step"] for line in metrics(run.directory)] == [32]
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_ends_training_at_once(tiny, workdir):
    with pytest.raises(KeyboardInterrupt):
        lh.train(partial(Signals, signal.SIGINT, {20, 21}), config=tiny(num_envs=1, run_dir=workdir / "run"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
def test_an_ignored_signal_stays_ignored(tiny):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run = lh.train(partial(Signals, signal.SIGINT, {20}), config=tiny(num_envs=1))
    assert not run.interrupted
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_it_trains_outside_the_main_thread(tiny):
    runs = []
    thread = threading.Thread(target=lambda: runs.append(lh.train("CartPole-v1", config=tiny())))
    thread.start()
    thread.join()
    assert runs[0].step == 96
