"""Environments with structured actions, masks, pictures, or a need for memory, for training and comparisons.

Importing this registers each as `levelhead/<Name>-v0`, see `IDS`. From this directory, or with it on PYTHONPATH:

    levelhead train levelhead/HiddenVelocityCartPole-v0 --import environments

What they are made of is imported on first use, and whatever is missing named with the command that installs it.
"""

import importlib
import operator
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, TimeLimit, TransformAction, TransformObservation

Env = gym.Env[Any, Any]


def _load(module: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{error}; to install what this environment needs: {install}") from error


# -- memory ------------------------------------------------------------------------------------------------------


def hidden_velocity_cartpole() -> Env:
    """CartPole-v1 without velocities: position and angle alone, `[2]`."""
    env = gym.make("CartPole-v1", disable_env_checker=True)
    seen, whole = operator.itemgetter([0, 2]), env.observation_space
    return TransformObservation(env, seen, spaces.Box(seen(whole.low), seen(whole.high)))


def battleship() -> Env:
    """POPGym's BattleshipEasy: an 8 x 8 board, hit or miss is all one sees. MultiDiscrete([8, 8]) actions.

    Return 1 without a miss, 0 for shooting at every tile once. 64 shots at most, which is reported as truncation.
    """
    return _popgym("BattleshipEasy")


def battleship_pair() -> Env:
    """`battleship` with an action in two parts, Tuple(Discrete(8), Discrete(8)), one of which may see the other."""
    return TransformAction(battleship(), np.array, spaces.Tuple((spaces.Discrete(8), spaces.Discrete(8))))


def repeat_previous() -> Env:
    """POPGym's RepeatPreviousEasy: name the suit seen three observations before this one. Return -1 to 1, 51 steps."""
    return _popgym("RepeatPreviousEasy")


def count_recall() -> Env:
    """POPGym's CountRecallEasy: how many cards of the colour asked for have there been? Return -1 to 1, 51 steps."""
    return _popgym("CountRecallEasy")


class WithoutInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps back the info, in which CountRecall has the answer, in an array that it goes on writing to."""

    def reset(self, **kwargs: Any):
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: Any):
        return *self.env.step(action)[:4], {}


def _popgym(name: str) -> Env:
    """As in POPGym's own baselines: observation, previous action and a flag for the first step; here as one-hots."""
    popgym = _load("popgym.envs", "pip install popgym==1.0.7")
    wrappers = _load("popgym.wrappers", "pip install popgym==1.0.7")
    env = wrappers.Antialias(wrappers.PreviousAction(getattr(popgym, name)()))
    env = FlattenObservation(WithoutInfo(env))
    return TransformObservation(env, np.float32, spaces.Box(0, 1, env.observation_space.shape))


def minigrid_memory() -> Env:
    """MiniGrid-MemoryS7-v0: an object at the start says where to turn at the end of the corridor.

    The agent's view of 7 x 7 cells, each object, colour and state, flat and divided by 10: float32 `[147]`. Return 0 or
    0.1 to 1, the more the sooner. At most 245 steps.
    """
    minigrid = _load("minigrid", "pip install minigrid==3.2.0")
    env = minigrid.wrappers.ImgObsWrapper(gym.make("MiniGrid-MemoryS7-v0", disable_env_checker=True))
    size = int(np.prod(env.observation_space.shape))
    return TransformObservation(env, lambda view: view.ravel() / np.float32(10), spaces.Box(0, 1, (size,)))


# -- hybrid actions ----------------------------------------------------------------------------------------------


def platform() -> Env:
    """Run, hop or leap over two gaps and past two enemies (Masson et al. 2016); return is the distance, 1 at the goal.

    Actions as the package has them, Tuple(Discrete(3), Tuple(Box(0, 30), Box(0, 720), Box(0, 430))): which one, and
    a parameter of each, of which that of the chosen one counts. It says after each action how long that took; this is
    left out, as in P-DQN. What remains is `[9]`.
    """
    # It leaves out numba, and asks for pygame where others ask for pygame-ce, whose files are the same.
    install = "pip install numba pygame-ce && pip install --no-deps hybrid-platform==0.1.0"
    _load("gym_platform", install)
    _load("gym_platform.envs", install)
    env = gym.make("Platform-v0", disable_env_checker=True)
    return TransformObservation(env, operator.itemgetter(0), env.observation_space[0])


DOOM_VARIABLES = np.array([10, 100, 100, 10, 100], np.float32)
"""Kills, health, armor, weapon and ammunition are divided by these."""
DOOM_DELTAS = np.array([1, 5, 25], np.float32)
"""What 1 stands for in looking up or down, turning, and stepping aside: degrees, degrees and speed, at each tic."""


def vizdoom_deathmatch() -> Env:
    """ViZDoom's Deathmatch: 17 binary buttons and three real-valued ones, at every fourth tic.

    Actions Dict(binary: MultiBinary(17), continuous: Box(-1, 1, (3,))), observations Dict(gamevariables: `[5]`,
    screen: uint8 `[60, 80, 3]`). The game's own time limit would report termination as well, and a black screen; so
    that is off, and Gymnasium's stops after as many tics.
    """
    _load("vizdoom.gymnasium_wrapper", "pip install vizdoom==1.3.2")
    env = gym.make(
        "VizdoomDeathmatch-MultiBinary-v1",
        disable_env_checker=True,
        frame_skip=4,
        episode_timeout=0,
        screen_resolution="RES_160X120",
        doom_config_path=str(Path(tempfile.gettempdir(), "vizdoom.ini")),  # else it lands in the working directory
    )
    env = TransformAction(
        TimeLimit(env, 4200 // 4),
        lambda action: {
            "binary": action["binary"],
            "continuous": np.clip(action["continuous"], -1, 1).astype(np.float32) * DOOM_DELTAS,
        },
        spaces.Dict({"binary": env.action_space["binary"], "continuous": spaces.Box(-1, 1, (3,))}),
    )
    return TransformObservation(
        env,
        lambda seen: {
            "gamevariables": seen["gamevariables"] / DOOM_VARIABLES,
            "screen": np.ascontiguousarray(seen["screen"][::2, ::2]),
        },
        spaces.Dict(
            {
                "gamevariables": spaces.Box(-np.inf, np.inf, (5,)),
                "screen": spaces.Box(0, 255, (60, 80, 3), np.uint8),
            }
        ),
    )


class HybridToy(gym.Env[np.ndarray, tuple[Any, ...]]):
    """Choose the type that the observation calls for, and its parameters; those of other types count for nothing.

    Observations are uniform in [-1, 1]^3 and independent. The right type is the index of the largest; its parameters,
    as shares of their ranges from -1 to 1, should be the numbers at `TARGETS[type]`. A step is worth 1 less their mean
    distance, and 0 with the wrong type.
    """

    STEPS = 10
    BEST_RETURN = 10.0
    TARGETS = ((1, 2), (2,), (2, 0, 1))

    def __init__(self) -> None:
        parameters = (spaces.Box(-1, 1, (2,)), spaces.Box(0, 100, (1,)), spaces.Box(-5, 5, (3,)))
        self.observation_space = spaces.Box(-1, 1, (3,))
        self.action_space = spaces.Tuple((spaces.Discrete(3), *parameters))
        self.ranges = [(space.low, space.high) for space in parameters]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: tuple[Any, ...]):
        kind, (low, high) = int(action[0]), self.ranges[int(action[0])]
        reward = 0.0
        if kind == self.seen.argmax():
            share = 2 * (np.clip(action[1 + kind], low, high) - low) / (high - low) - 1
            reward = 1 - float(np.abs(share - self.seen[list(self.TARGETS[kind])]).mean())
        self.steps += 1
        return self._observe(), reward, self.steps == self.STEPS, False, {}

    def solution(self) -> tuple[Any, ...]:
        """The best action now."""
        kind = int(self.seen.argmax())
        low, high = self.ranges[kind]
        parameters = [(low + high) / 2 for low, high in self.ranges]
        parameters[kind] = low + (high - low) * (self.seen[list(self.TARGETS[kind])] + 1) / 2
        return (kind, *parameters)

    def _observe(self) -> np.ndarray:
        self.seen = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return self.seen


def hybrid_toy() -> Env:
    """Ten independent steps of choosing a type and its parameters; see `HybridToy`. The best return is 10."""
    return HybridToy()


def hybrid_toy_box() -> Env:
    """The hybrid toy for those who know real numbers alone: three scores, of which the highest chooses the type, and
    the parameters of all types as shares of their ranges, -1 to 1. Box `[9]`.
    """
    env = HybridToy()
    low, high = (np.concatenate(bounds) for bounds in zip(*env.ranges, strict=True))
    ends = np.cumsum([len(bounds[0]) for bounds in env.ranges])[:-1]

    def whole(action: np.ndarray) -> tuple[Any, ...]:
        return (int(action[:3].argmax()), *np.split(low + (high - low) * (action[3:] + 1) / 2, ends))

    bound = np.array([np.inf] * 3 + [1.0] * len(low), np.float32)
    return TransformAction(env, whole, spaces.Box(-bound, bound))


# -- masks -------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = 6, 7
LINES = np.array(
    [
        [(row + i * down) * COLUMNS + column + i * right for i in range(4)]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1))
        for row in range(ROWS - 3 * down)
        for column in range(3 * (right < 0), COLUMNS - 3 * (right > 0))
    ]
)
"""`[69, 4]`, the four cells of every line, rows from the top, as indices of a flat board."""

Opponent = Callable[[np.ndarray, np.ndarray, np.random.Generator], int]
"""From the board int8 `[6, 7]`, own pieces 1, the other's -1, and the mask of legal columns, to a column."""


def random_opponent(board: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> int:
    """Any legal column."""
    return _any(np.flatnonzero(mask), rng)


def greedy_opponent(board: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> int:
    """Wins if it can at once, else stops the other from doing so, else plays any legal column."""
    lines = board.ravel()[LINES]
    totals = lines.sum(1)
    falls_to = ((board == 0).sum(0) - 1) * COLUMNS + np.arange(COLUMNS)
    for threat in (3, -3):
        open_lines = totals == threat
        missing = LINES[open_lines][lines[open_lines] == 0]
        columns = missing[falls_to[missing % COLUMNS] == missing] % COLUMNS
        if len(columns):
            return _any(columns, rng)
    return random_opponent(board, mask, rng)


def _any(columns: np.ndarray, rng: np.random.Generator) -> int:
    return int(columns[rng.integers(len(columns))])


class ConnectFour(gym.Env[np.ndarray, int]):
    """Connect-four against an opponent who is part of the environment; who begins is drawn.

    Observations are 6 x 7 x 2, own pieces and the other's, flat: float32 `[84]`. The reward is 1, 0 or -1 at the end.
    Legal columns are in `info["action_mask"]`, int8 `[7]`; when the game is over all count as legal, since no
    distribution has an empty mask.

    Raises:
        ValueError: a column is full.
    """

    def __init__(self, opponent: Opponent = random_opponent, seed: int | None = None) -> None:
        self.observation_space = spaces.Box(0, 1, (ROWS * COLUMNS * 2,))
        self.action_space = spaces.Discrete(COLUMNS)
        self.opponent = opponent
        self.np_random = np.random.default_rng(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.board = np.zeros((ROWS, COLUMNS), np.int8)
        self.winner, self.over = 0, False
        if self.np_random.integers(2):
            self._answer()
        return self._observe(), {"action_mask": self.action_masks()}

    def step(self, action: int):
        if not self._open()[action]:
            raise ValueError(f"column {action} is full")
        self._drop(int(action), 1)
        if not self.over:
            self._answer()
        return self._observe(), float(self.winner), self.over, False, {"action_mask": self.action_masks()}

    def action_masks(self) -> np.ndarray:
        """Legal columns, int8 `[7]`."""
        return np.ones(COLUMNS, np.int8) if self.over else self._open()

    def _open(self) -> np.ndarray:
        return (self.board[0] == 0).astype(np.int8)

    def _answer(self) -> None:
        self._drop(self.opponent(-self.board, self._open(), self.np_random), -1)

    def _drop(self, column: int, player: int) -> None:
        self.board[np.count_nonzero(self.board[:, column] == 0) - 1, column] = player
        if (self.board.ravel()[LINES].sum(1) == 4 * player).any():
            self.winner = player
        self.over = bool(self.winner) or bool(self.board[0].all())

    def _observe(self) -> np.ndarray:
        return np.stack([self.board == 1, self.board == -1], axis=-1).ravel().astype(np.float32)


def connect_four(opponent: Opponent = random_opponent, seed: int | None = None) -> Env:
    """Connect-four with `info["action_mask"]`; see `ConnectFour`."""
    return ConnectFour(opponent, seed)


class WithoutMask(WithoutInfo):
    """Connect-four that keeps the mask back: who chooses a full column loses at once."""

    def step(self, action: int):
        if self.env.action_masks()[action]:
            return super().step(action)
        return self.env._observe(), -1.0, True, False, {}


def connect_four_unmasked(opponent: Opponent = random_opponent, seed: int | None = None) -> Env:
    """Connect-four without masks; choosing a full column loses the game."""
    return WithoutMask(ConnectFour(opponent, seed))


# -- pictures ----------------------------------------------------------------------------------------------------


class Catch(gym.Env[np.ndarray, int]):
    """Balls fall one after another, and a bar below is to be where they land: left, stay or right, pictures 84 x 84.

    Each ball is worth 1 or -1, and drifts as it falls. Five balls end an episode.
    """

    CELLS, SIDE, BALLS = 12, 7, 5

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (self.CELLS * self.SIDE, self.CELLS * self.SIDE, 1), np.uint8)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.balls, self.bar = 0, self.CELLS // 2
        self._drop()
        return self._observe(), {}

    def step(self, action: int):
        self.bar = int(np.clip(self.bar + action - 1, 0, self.CELLS - 1))
        self.row += 1
        self.column = int(np.clip(self.column + self.np_random.integers(-1, 2), 0, self.CELLS - 1))
        reward = 0.0
        if self.row == self.CELLS - 1:
            reward = 1.0 if abs(self.bar - self.column) <= 1 else -1.0
            self.balls += 1
            self._drop()
        return self._observe(), reward, self.balls == self.BALLS, False, {}

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(self.CELLS))

    def _observe(self) -> np.ndarray:
        cells = np.zeros((self.CELLS, self.CELLS, 1), np.uint8)
        cells[self.row, self.column] = 255
        cells[-1, max(self.bar - 1, 0) : self.bar + 2] = 128
        return cells.repeat(self.SIDE, 0).repeat(self.SIDE, 1)


def catch() -> Env:
    """Falling balls to be caught, seen as pictures; see `Catch`. Return -5 to 5."""
    return Catch()


IDS: dict[str, tuple[Callable[..., Env], dict[str, Any]]] = {
    "levelhead/HiddenVelocityCartPole-v0": (hidden_velocity_cartpole, {}),
    "levelhead/Battleship-v0": (battleship, {}),
    "levelhead/BattleshipPair-v0": (battleship_pair, {}),
    "levelhead/RepeatPrevious-v0": (repeat_previous, {}),
    "levelhead/CountRecall-v0": (count_recall, {}),
    "levelhead/MiniGridMemory-v0": (minigrid_memory, {}),
    "levelhead/Platform-v0": (platform, {}),
    "levelhead/VizdoomDeathmatch-v0": (vizdoom_deathmatch, {}),
    "levelhead/HybridToy-v0": (hybrid_toy, {}),
    "levelhead/HybridToyBox-v0": (hybrid_toy_box, {}),
    "levelhead/Catch-v0": (catch, {}),
    "levelhead/ConnectFour-v0": (connect_four, {"opponent": random_opponent}),
    "levelhead/ConnectFourGreedy-v0": (connect_four, {"opponent": greedy_opponent}),
    "levelhead/ConnectFourUnmasked-v0": (connect_four_unmasked, {"opponent": random_opponent}),
    "levelhead/ConnectFourUnmaskedGreedy-v0": (connect_four_unmasked, {"opponent": greedy_opponent}),
}

for _id, (_factory, _kwargs) in IDS.items():
    gym.register(_id, entry_point=f"{__name__}:{_factory.__name__}", kwargs=_kwargs)
