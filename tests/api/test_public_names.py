"""Names that users rely on: they may be added to, and none may change unnoticed."""

import inspect

import pytest

import levelhead as lh

NAMES = {
    "ActionHead", "CategoricalHead", "CheckpointError", "ClipObjective", "Config", "ConfigError", "EnvConfig",
    "EnvState", "GaussianHead", "GroupConfig", "GymnasiumVecEnv", "HLGaussValueHead", "HeadConfig", "Iteration",
    "LevelheadError", "LinearValueHead", "MultiTaskVecEnv", "Network", "NetworkConfig", "Objective", "OptimizerConfig",
    "PPOConfig", "Policy", "PopArtValueHead", "Report", "Run", "RunningNormHead", "SIGNED_SQRT", "SYMLOG", "Schedule",
    "Step", "TensorCartPole", "TensorVecEnv", "Trainer", "TrainingFault", "Transform", "TransformValueHead",
    "TwoHotValueHead", "ValueHead", "ValueNormHead", "ValueNormalizer", "VecEnv", "__version__", "clip_surrogate",
    "evaluate", "explained_variance", "gae", "load_policy", "local", "make_env", "make_gymnasium", "preset", "resume",
    "train", "value_loss",
}  # fmt: skip

SIGNATURES = {
    "train": "env * config total_steps seed value num_envs reward_scale run_dir device network objective console",
    "resume": "run * total_steps env network value objective console",
    "evaluate": "policy env episodes seed env_kwargs",
    "load_policy": "run * network value device",
    "preset": "env_id",
    "gae": "reward value next_value terminated truncated gamma lam valid",
    **{
        f"{name}ValueHead": "input_dim output_dim beta epsilon device dtype"
        for name in ("PopArt", "Linear", "TwoHot", "HLGauss", "Transform")
    },
    "make_env": "env num_envs kwargs",
    "MultiTaskVecEnv": "members",
}

FIELDS = {
    "Run": {"directory", "policy", "config", "step", "interrupted"},
    "Report": {"returns", "lengths", "mean_return", "std_return", "tasks", "by_task"},
    "VecEnv": {"num_envs", "observation_space", "action_space", "tasks", "task", "reset", "step", "close"},
    "Iteration": {"iteration", "step", "steps", "metrics"},
    "Step": {"observation", "reward", "terminated", "truncated", "valid", "final_observation"},
    "Policy": {"act", "value", "value_head", "action_head", "network", "reader", "observation_space", "reset"},
}


def parameters_of(function):
    """Names in order, with a star before those that must be given by name."""
    names, starred = [], False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            names.append("*")
            starred = True
        names.append(name)
    return names


def test_every_promised_name_is_public():
    assert set(lh.__all__) >= NAMES


@pytest.mark.parametrize(("name", "expected"), SIGNATURES.items())
def test_parameters_keep_their_names_and_order(name, expected):
    expected = expected.split()
    found = parameters_of(getattr(lh, name))
    positional = expected.index("*") if "*" in expected else len(expected)
    assert found[:positional] == expected[:positional]
    assert set(found) >= set(expected)


@pytest.mark.parametrize(("name", "expected"), FIELDS.items())
def test_what_is_handed_back_keeps_its_fields(finished, name, expected):
    kind = getattr(lh, name)
    instance = finished.policy if name == "Policy" else None
    fields = set(dir(instance or kind)) | set(getattr(kind, "__annotations__", ()))
    assert fields >= expected


def test_defaults_of_the_front_door_stay_as_documented():
    defaults = {name: p.default for name, p in inspect.signature(lh.evaluate).parameters.items()}
    assert (defaults["episodes"], defaults["seed"]) == (10, 0)
    assert inspect.signature(lh.load_policy).parameters["device"].default == "cpu"


def test_every_error_is_a_levelhead_error_and_a_bad_setting_a_value_error():
    for name in ("ConfigError", "CheckpointError", "TrainingFault"):
        assert issubclass(getattr(lh, name), lh.LevelheadError)
    assert issubclass(lh.ConfigError, ValueError)
