"""Value-value attention, maps of tokens and the control without text, against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.vision_language.local_tokens import (
    distance_to_mean,
    ensemble,
    patches_of,
    state_prompts,
    token_map,
    value_attention,
)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_value_attention_is_attention_of_the_values_with_themselves():
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(12, 3, batch_first=True).double()
    nn.init.normal_(layer.in_proj_bias)
    nn.init.normal_(layer.out_proj.bias)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    weight, bias = layer.in_proj_weight.detach().numpy()[24:], layer.in_proj_bias.detach().numpy()[24:]
    v = x.numpy() @ weight.T + bias
    heads = []
    for h in range(3):
        part = v[..., 4 * h : 4 * h + 4]
        heads.append(softmax(part @ part.transpose(0, 2, 1) / 2.0) @ part)
    out = layer.out_proj
    expected = np.concatenate(heads, -1) @ out.weight.detach().numpy().T + out.bias.detach().numpy()
    np.testing.assert_allclose(value_attention(layer, x).detach().numpy(), expected, atol=1e-12)


def test_value_attention_without_biases():
    layer = nn.MultiheadAttention(8, 1, bias=False, batch_first=True)
    x = torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(0))
    v = (x @ layer.in_proj_weight[16:].T).detach().numpy()
    expected = softmax(v @ v.transpose(0, 2, 1) / np.sqrt(8)) @ v @ layer.out_proj.weight.detach().numpy().T
    np.testing.assert_allclose(value_attention(layer, x).detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "x", "words"),
    [
        (nn.MultiheadAttention(8, 2), torch.zeros(1, 3, 8), "batch_first"),
        (nn.MultiheadAttention(8, 2, batch_first=True, kdim=4), torch.zeros(1, 3, 8), "kdim"),
        (nn.MultiheadAttention(8, 2, batch_first=True), torch.zeros(3, 8), "\\(N, T, 8\\)"),
    ],
)
def test_value_attention_refuses_other_layers_and_tokens(layer, x, words):
    with pytest.raises(ValueError, match=words):
        value_attention(layer, x)


def test_an_ensemble_is_the_direction_of_the_mean_of_directions():
    e = np.random.default_rng(0).normal(size=(4, 6))
    unit = e / np.linalg.norm(e, axis=1, keepdims=True)
    mean = unit.mean(0)
    np.testing.assert_allclose(ensemble(torch.tensor(e)).numpy(), mean / np.linalg.norm(mean))


def test_prompts_are_all_pairs_of_template_and_state():
    found = state_prompts("steel", ["intact {}", "{} with rust"], ["a {}.", "one {}."])
    assert found == ["a intact steel.", "a steel with rust.", "one intact steel.", "one steel with rust."]


def test_a_map_is_the_mean_of_neighbours_at_the_corners_of_the_image():
    values = np.arange(9.0).reshape(1, 9)
    found = token_map(torch.tensor(values), (5, 5)).numpy()[0]
    padded = np.pad(values.reshape(3, 3), 1, mode="edge")
    means = np.array([[padded[i : i + 3, j : j + 3].mean() for j in range(3)] for i in range(3)])
    np.testing.assert_allclose(found[::2, ::2], means)  # corners are aligned
    np.testing.assert_allclose(found[1, 1], means[:2, :2].mean())
    plain = token_map(torch.tensor(values), (5, 5), smooth=False).numpy()[0]
    np.testing.assert_allclose(plain[::2, ::2], values.reshape(3, 3))


def test_patches_of_no_square_are_refused():
    with pytest.raises(ValueError, match="class token"):
        token_map(torch.zeros(1, 10), (4, 4))


def test_distance_to_the_mean():
    z = np.random.default_rng(1).normal(size=(2, 5, 3))
    unit = z / np.linalg.norm(z, axis=2, keepdims=True)
    mean = unit.mean(1, keepdims=True)
    expected = 1 - (unit * mean).sum(2) / np.linalg.norm(mean, axis=2)
    np.testing.assert_allclose(distance_to_mean(torch.tensor(z)).numpy(), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: state_prompts(["steel"]), "name of an object"),
        (lambda: state_prompts(" "), "name of an object"),
        (lambda: state_prompts("steel", ["intact"]), "once, .* got 'intact'"),
        (lambda: state_prompts("steel", ["{}"], ["{name}"]), "once, .* got '{name}'"),
    ],
)
def test_prompts_that_lose_their_name_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_one_state_is_a_text():
    assert state_prompts("steel", "intact {}", "a {}.") == ["a intact steel."]


def test_a_pair_speaks_for_its_encoders():
    class Inner(nn.Module):
        def patches(self, x):
            return x

    class Pair(nn.Module):
        has_patches = False

        def __init__(self):
            super().__init__()
            self.images = nn.Sequential(Inner())

    with pytest.raises(ValueError, match="local tokens"):
        patches_of(Pair())
    assert isinstance(patches_of(Pair().images), Inner)


def test_a_model_without_local_tokens_is_refused():
    with pytest.raises(ValueError, match="local tokens"):
        patches_of(nn.Linear(2, 2))
