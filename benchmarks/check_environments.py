"""Checks environments.py: connect-four against PettingZoo's rules, best and other returns, seeds, and speed.

    python benchmarks/check_environments.py [--games 500] [--steps 2000] [IDS]

Prints a line per environment. Those whose packages are missing are named and left out, unless asked for by id.
Comparing connect-four takes `pip install pettingzoo==1.27.0 pygame-ce`.
"""

import argparse
import time
import warnings
from typing import Any

import environments
import gymnasium as gym
import numpy as np
from environments import COLUMNS, ConnectFour, HybridToy, greedy_opponent, random_opponent


def same_rules(games: int) -> None:
    """Random against greedy players, on both boards at once."""
    try:
        from pettingzoo.classic.connect_four.connect_four import raw_env
    except ImportError as error:
        print(f"connect-four not compared: {error}")
        return
    rng, theirs, players = np.random.default_rng(0), raw_env(), (random_opponent, greedy_opponent)
    moves = 0
    for game in range(games):
        ours = ConnectFour()
        ours.reset()
        ours.board[:] = ours.winner = ours.over = 0
        theirs.reset()
        for turn in range(6 * COLUMNS):
            player, name = (1, -1)[turn % 2], theirs.agent_selection
            seen = theirs.observe(name)
            board = player * ours.board
            assert (seen["observation"] == np.stack([board == 1, board == -1], -1)).all()
            assert (seen["action_mask"] == ours._open()).all()
            column = players[(game + turn) % 2](board, seen["action_mask"], rng)
            ours._drop(column, player)
            theirs.step(column)
            moves += 1
            assert ours.over == any(theirs.terminations.values())
            assert ours.winner == theirs.rewards["player_0"]
            if ours.over:
                break
    print(f"connect-four: same rules as PettingZoo in {games} games, {moves} moves")


def greedy_sees(games: int) -> None:
    """The greedy opponent wins where one move can, and else leaves no win in one move where one move prevents all."""
    rng, env = np.random.default_rng(1), ConnectFour()

    def winning(board: np.ndarray, player: int) -> set[int]:
        columns = set()
        for column in np.flatnonzero(board[0] == 0):
            env.board, env.winner = board.copy(), 0
            env._drop(int(column), player)
            columns |= {int(column)} if env.winner else set()
        return columns

    for _ in range(games):
        board, player, winner = np.zeros((6, COLUMNS), np.int8), 1, 0
        while not winner and not board[0].all():
            mask = (board[0] == 0).astype(np.int8)
            chosen = greedy_opponent(player * board, mask, rng)
            can, must = winning(board, player), winning(board, -player)
            assert mask[chosen]
            assert chosen in (can or must or {chosen})
            played = random_opponent(board, mask, rng) if rng.random() < 0.7 else chosen
            env.board, env.winner = board, 0
            env._drop(played, player)
            board, winner, player = env.board.copy(), env.winner, -player
    print(f"greedy opponent: takes wins and stops them in {games} games")


def match(opponent: environments.Opponent, player: environments.Opponent, games: int) -> float:
    env, rng, total = environments.connect_four(opponent, seed=0), np.random.default_rng(2), 0.0
    for _ in range(games):
        _, info = env.reset()
        over = False
        while not over:
            _, reward, over, _, info = env.step(player(env.board, info["action_mask"], rng))
        total += reward
    return total / games


def toy_returns(episodes: int = 500) -> None:
    env = HybridToy()
    env.action_space.seed(0)

    def centre() -> tuple[Any, ...]:
        return (env.solution()[0], *((low + high) / 2 for low, high in env.ranges))

    def other_type() -> tuple[Any, ...]:
        return (int(env.np_random.integers(3)), *env.solution()[1:])

    for name, act in (
        ("the solution", env.solution),
        ("the right type, parameters in the middle", centre),
        ("any type, parameters right", other_type),
        ("random", env.action_space.sample),
    ):
        env.reset(seed=0)
        total = 0.0
        for _ in range(episodes * env.STEPS):
            total += env.step(act())[1]
        print(f"hybrid toy, {name}: {total / episodes:.3f}")


def walk(env_id: str, steps: int) -> tuple[list[Any], str]:
    """What random legal actions see, and a line about it."""
    env = gym.make(env_id)
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    seen, lengths, returns, truncations, stepping = [], [0], [0.0], 0, 0.0
    for _ in range(steps):
        mask = info.get("action_mask")
        action = env.action_space.sample() if mask is None else env.action_space.sample(mask)
        started = time.perf_counter()
        observation, reward, terminated, truncated, info = env.step(action)
        stepping += time.perf_counter() - started
        assert env.observation_space.contains(observation), f"{env_id}: {observation}"
        seen.append((gym.spaces.flatten(env.observation_space, observation), reward, terminated, truncated))
        lengths[-1] += 1
        returns[-1] += float(reward)
        if terminated or truncated:
            truncations += truncated
            lengths.append(0)
            returns.append(0.0)
            started = time.perf_counter()
            observation, info = env.reset()
            stepping += time.perf_counter() - started
    env.close()
    whole = slice(-1) if len(lengths) > 1 else slice(None)
    return seen, (
        f"{env_id}: {steps / stepping:,.0f} steps/s; {len(lengths) - 1} episodes of {min(lengths[whole])} to"
        f" {max(lengths[whole])} steps, {truncations} truncated, mean return {np.mean(returns[whole]):.2f};"
        f"\n    observations {env.observation_space}\n    actions {env.action_space}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", metavar="IDS", help=", ".join(environments.IDS))
    parser.add_argument("--games", type=int, default=500)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    warnings.simplefilter("error", UserWarning)
    same_rules(arguments.games)
    greedy_sees(arguments.games)
    for name, player in (("random", random_opponent), ("greedy", greedy_opponent)):
        scores = (f"{match(opponent, player, arguments.games):+.2f}" for opponent in (random_opponent, greedy_opponent))
        print(f"connect-four, {name} player: {next(scores)} against random, {next(scores)} against greedy")
    toy_returns()
    for env_id in arguments.ids or environments.IDS:
        try:
            first, line = walk(env_id, arguments.steps)
        except ImportError as error:
            if arguments.ids:
                raise
            print(f"{env_id}: {error}")
            continue
        again, _ = walk(env_id, min(arguments.steps, 300))
        for (x, *rest), (y, *others) in zip(first, again, strict=False):
            assert rest == others, f"{env_id}: not the same with the same seed"
            assert (x == y).all(), f"{env_id}: not the same with the same seed"
        print(line)


if __name__ == "__main__":
    main()
