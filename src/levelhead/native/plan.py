"""What `plan.h` declares, for ctypes."""

from ctypes import CFUNCTYPE, POINTER, Structure, c_double, c_float, c_int32, c_int64, c_void_p, sizeof
from functools import reduce

REDUCE = CFUNCTYPE(c_int32, POINTER(c_double))


class Layer(Structure):
    _fields_ = (
        ("inputs", c_int32),
        ("outputs", c_int32),
        ("activation", c_int32),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("weight_gradient", c_void_p),
        ("bias_gradient", c_void_p),
    )


class Group(Structure):
    _fields_ = (
        ("parameter", c_void_p),
        ("gradient", c_void_p),
        ("exp_avg", c_void_p),
        ("exp_avg_sq", c_void_p),
        ("step", c_void_p),
        ("learning_rate", c_void_p),
        ("decay", c_void_p),
        ("size", c_int64),
        ("eps", c_float),
        ("max_norm", c_float),
        ("moves", c_int32),
    )


class Distribution(Structure):
    _fields_ = (
        ("kind", c_int32),
        ("choices", POINTER(c_int32)),
        ("dims", c_int32),
        ("log_std", c_void_p),
        ("log_std_gradient", c_void_p),
    )


class Batch(Structure):
    _fields_ = tuple(
        (name, c_void_p)
        for name in (
            "observation",
            "choice",
            "action",
            "legal",
            "old_parameters",
            "old_log_std",
            "log_prob",
            "advantage",
            "target",
            "old_value",
            "task",
        )
    )


class Plan(Structure):
    _fields_ = (
        ("shared", POINTER(Layer)),
        ("actor", POINTER(Layer)),
        ("critic", POINTER(Layer)),
        ("n_shared", c_int32),
        ("n_actor", c_int32),
        ("n_critic", c_int32),
        ("groups", POINTER(Group)),
        ("n_groups", c_int32),
        ("distribution", Distribution),
        ("value_shift", c_void_p),
        ("value_scale", c_void_p),
        ("objective", c_int32),
        ("learn_actor", c_int32),
        ("learn_critic", c_int32),
        ("standardize", c_int32),
        ("clip_range", c_float),
        ("dual_clip", c_float),
        ("penalty", c_float),
        ("entropy_coef", c_float),
        ("value_coef", c_float),
        ("value_clip", c_float),
        ("value_huber", c_float),
        ("max_norm", c_float),
        ("kl_limit", c_float),
        ("beta1", c_float),
        ("beta2", c_float),
        ("threads", c_int32),
        ("batch", Batch),
        ("index", c_void_p),
        ("weight", c_void_p),
        ("minibatches", c_int64),
        ("size", c_int64),
        ("blocked", c_void_p),
        ("means", c_void_p),
        ("broken", c_void_p),
        ("counted", c_void_p),
        ("reduce", REDUCE),
    )


class Reading(Structure):
    _fields_ = (
        ("layers", POINTER(Layer)),
        ("n_layers", c_int32),
        ("rows", c_int32),
        ("wide", c_int32),
        ("mean", c_void_p),
        ("std", c_void_p),
        ("clip", c_double),
    )


class Acting(Structure):
    _fields_ = (
        ("reading", Reading),
        ("distribution", Distribution),
        ("start", c_void_p),
        ("low", c_void_p),
        ("high", c_void_p),
        ("center", c_void_p),
        ("half_range", c_void_p),
        ("observation", c_void_p),
        ("noise", c_void_p),
        ("action", c_void_p),
        ("parameters", c_void_p),
        ("given", c_void_p),
    )


class Returns(Structure):
    _fields_ = (
        ("reward", c_void_p),
        ("value", c_void_p),
        ("next_value", c_void_p),
        ("terminated", c_void_p),
        ("truncated", c_void_p),
        ("valid", c_void_p),
        ("gamma", c_float),
        ("lam", c_float),
        ("steps", c_int64),
        ("columns", c_int64),
        ("advantage", c_void_p),
        ("target", c_void_p),
    )


LAYOUT = reduce(lambda digits, kind: digits * 1000 + sizeof(kind), (Plan, Acting, Returns, Batch, Group, Layer), 0)
"""Sizes, as `levelhead_layout` tells them."""

MEANS = (
    "train/policy_gradient_loss",
    "train/entropy_loss",
    "train/approx_kl",
    "train/clip_fraction",
    "train/kl",
    "train/value_loss",
    "train/loss",
)
"""The names of `Mean`."""
