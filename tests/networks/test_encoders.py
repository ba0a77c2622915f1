"""Encoders: sizes by hand, bytes as shares of 255, and every part of an observation in the features."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, Tuple
from torch import nn
from torch.testing import assert_close

from levelhead.errors import ConfigError
from levelhead.networks import Encoder, ObservationReader
from levelhead.networks.encoders import ImpalaCNN, NatureCNN

every_network = pytest.mark.parametrize("make", [NatureCNN, ImpalaCNN])


def bytes_of(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def networks_in(encoder):
    return [m for m in encoder.modules() if isinstance(m, NatureCNN | ImpalaCNN)]


def flat_size(network):
    """How many numbers the layer after the convolutions reads."""
    (linear,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    return linear.in_features


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((4, 84, 84), 64 * 7 * 7),  # 84 -> 20 -> 9 -> 7, as published
        ((1, 36, 36), 64 * 1 * 1),  # 36 -> 8 -> 3 -> 1
        ((3, 100, 60), 64 * 9 * 4),  # 100 -> 24 -> 11 -> 9, 60 -> 14 -> 6 -> 4
        ((3, 64, 96), 64 * 4 * 8),
    ],
)
def test_the_nature_network_has_its_published_sizes(shape, size):
    network = NatureCNN(shape)
    assert flat_size(network) == size
    assert network.dim == 512
    assert network(bytes_of(2, *shape)).shape == (2, 512)
    assert [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)] == [32, 64, 64]


def test_the_nature_network_has_its_published_number_of_parameters():
    # 8*8*4*32+32, 4*4*32*64+64, 3*3*64*64+64, 3136*512+512
    assert sum(p.numel() for p in NatureCNN((4, 84, 84)).parameters()) == 8224 + 32832 + 36928 + 1606144


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 72, 96), 32 * 9 * 12),  # as published: halved three times
        ((4, 84, 84), 32 * 11 * 11),  # 84 -> 42 -> 21 -> 11
        ((1, 32, 33), 32 * 4 * 5),  # 33 -> 17 -> 9 -> 5
        ((3, 64, 64), 32 * 8 * 8),
    ],
)
def test_the_impala_network_has_its_published_sizes(shape, size):
    network = ImpalaCNN(shape)
    assert flat_size(network) == size
    assert network.dim == 256
    assert network(bytes_of(2, *shape)).shape == (2, 256)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [16] * 5 + [32] * 10
    assert len([m for m in network.modules() if isinstance(m, nn.MaxPool2d)]) == 3


@pytest.mark.parametrize("shape", [(3, 35, 84), (3, 84, 35), (1, 32, 32)])
def test_an_image_that_the_nature_network_cannot_shrink_is_refused(shape):
    with pytest.raises(ConfigError, match=rf"at least 36 x 36, not {shape[1]} x {shape[2]}"):
        NatureCNN(shape)
    assert ImpalaCNN(shape)(bytes_of(1, *shape)).shape == (1, 256)


@every_network
def test_networks_read_bytes_as_shares_of_255(make):
    network, x = make((3, 36, 36)), bytes_of(2, 3, 36, 36)
    expected = network.layers(x.float() / 255)
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    seen = []
    network.layers.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    network(torch.tensor([0, 255], dtype=torch.uint8).repeat(1, 3, 36, 18))
    assert seen[0].dtype == torch.float32
    assert seen[0].unique().tolist() == [0.0, 1.0]
    given = torch.full((1, 3, 36, 36), 200.0).contiguous(memory_format=torch.channels_last)
    network(given)
    assert (given == 200).all()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x).dtype == seen[-1].dtype == torch.bfloat16  # from the start, not from the first layer on


def test_the_impala_network_is_the_published_one():
    """Convolution, pooling and two residual blocks, three times; then relu, a layer and relu."""
    network, x = ImpalaCNN((2, 33, 32)), bytes_of(3, 2, 33, 32)
    torch.manual_seed(0)
    for p in network.parameters():
        nn.init.normal_(p, std=0.1)
    weights = iter(network.parameters())

    def convolved(h):
        return nn.functional.conv2d(h, next(weights), next(weights), padding=1)

    h = x.float() / 255
    for _ in range(3):
        h = nn.functional.max_pool2d(convolved(h), 3, 2, 1)
        for _ in range(2):
            h = h + convolved(convolved(h.relu()).relu())
    expected = nn.functional.linear(h.relu().flatten(1), next(weights), next(weights)).relu()
    assert_close(network(x), expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))
    assert next(weights, None) is None


@every_network
def test_every_parameter_has_a_gradient_and_biases_start_at_zero(make):
    network = make((3, 36, 36))
    assert all((p == 0).all() for name, p in network.named_parameters() if name.endswith("bias"))
    network(bytes_of(4, 3, 36, 36)).square().sum().backward()
    assert all(p.grad.isfinite().all() and (p.grad != 0).any() for p in network.parameters())


@every_network
def test_rows_do_not_meet_each_other(make):
    network, x = make((1, 36, 36)), bytes_of(3, 1, 36, 36)
    alone = torch.cat([network(row.unsqueeze(0)) for row in x])
    assert_close(network(x), alone, rtol=1e-4, atol=1e-5)


# -- all parts -----------------------------------------------------------------------------------------------------


def picture(*shape):
    return Box(0, 255, shape, np.uint8)


SPACE = Dict(
    [
        ("z", Box(-1.0, 1.0, (2, 2))),
        ("cameras", Tuple((picture(36, 40, 3), picture(1, 48, 36)))),
        ("a", Discrete(3, start=1)),
    ]
)


def observed(space, rows, seed=0):
    space.seed(seed)
    batch = gym.vector.utils.batch_space(space, rows)
    batch.seed(seed)
    return batch.sample()


@pytest.mark.parametrize(("kind", "dim"), [("nature", 512), ("impala", 256)])
def test_parts_stand_side_by_side_in_the_order_of_the_space(kind, dim):
    reader = ObservationReader(SPACE, normalize=False)
    encoder = Encoder(reader.shapes, kind)
    x = reader(reader.tensors(observed(SPACE, 5), torch.device("cpu")))
    features = encoder(x)
    assert encoder.dim == 4 + 2 * dim + 3
    assert features.shape == (5, encoder.dim)
    assert features.dtype == torch.float32
    assert torch.equal(features[:, :4], x["z"])
    assert torch.equal(features[:, -3:], x["a"])
    first, second = networks_in(encoder)
    assert_close(features[:, 4 : 4 + dim], first(x["cameras"][0]))
    assert_close(features[:, 4 + dim : 4 + 2 * dim], second(x["cameras"][1]))
    assert not any(p is q for p in first.parameters() for q in second.parameters())
    features.sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_an_image_alone_is_encoded_and_numbers_alone_are_left_as_they_are():
    encoder = Encoder({"": (3, 36, 36)}, "impala")
    x = bytes_of(2, 3, 36, 36)
    assert encoder.dim == 256
    assert torch.equal(encoder(x), networks_in(encoder)[0](x))
    numbers = torch.randn(2, 7)
    assert Encoder({"": (7,)}, "nature").dim == 7
    assert Encoder({"": (7,)}, "nature")(numbers) is numbers
    assert not list(Encoder({"": (7,)}, "nature").parameters())


@pytest.mark.parametrize("name", ["keys", "items", "forward", "front.left", "a b", "0"])
def test_images_may_have_any_name(name):
    space = Dict({name: picture(36, 36, 3), "x": Box(-1.0, 1.0, (1,))})
    reader = ObservationReader(space, normalize=False)
    encoder = Encoder(reader.shapes, "nature")
    assert encoder(reader(reader.tensors(observed(space, 2), torch.device("cpu")))).shape == (2, 513)
    other = Encoder(reader.shapes, "nature")
    other.load_state_dict(encoder.state_dict())


def test_an_image_that_is_too_small_for_its_encoder_is_refused():
    shapes = ObservationReader(Dict(a=picture(32, 32, 3)), normalize=False).shapes
    with pytest.raises(ConfigError, match="at least 36 x 36, not 32 x 32"):
        Encoder(shapes, "nature")
    assert Encoder(shapes, "impala").dim == 256
