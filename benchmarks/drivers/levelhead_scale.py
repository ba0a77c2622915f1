"""levelhead with the environment's preset, rewards multiplied. Usage: levelhead_scale.py ENV_ID STEPS SCALE SEED

Prints one RESULT line: the greedy return over 20 episodes, in the environment's own units.
"""

import json
import sys
import tempfile

import levelhead as lh

env_id, steps, scale, seed = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
with tempfile.TemporaryDirectory() as directory:
    run = lh.train(env_id, total_steps=steps, reward_scale=scale, seed=seed, run_dir=directory)
report = lh.evaluate(run.policy, env_id, episodes=20, seed=seed)
print("RESULT " + json.dumps({"return": report.mean_return, "note": ""}), flush=True)
