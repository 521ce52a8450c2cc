"""4M's published weights: every tensor goes where it belongs, and whatever does not fit is said."""

import numpy as np
import pytest
import torch

from testtime.errors import WeightsError
from testtime.space.masking import Stream
from testtime.space.model import FourM, Size
from testtime.space.weights import load_4m

D, PATCH, SIDE = 16, 4, 12
PLACES = (SIDE // PATCH) ** 2
STREAMS = (
    Stream("picture", "pixels", PLACES),
    Stream("depth", "grid", PLACES, 7),
    Stream("words", "sequence", 6, 11),
)
NAMES = {"picture": "rgb@224", "depth": "tok_depth@224", "words": "det"}


def model():
    torch.manual_seed(0)
    return FourM(STREAMS, Size(2, 3, D, 2), (SIDE, SIDE), PATCH)


def published(seed=1, norm_bias=True):
    """A state with the names and forms of 4M's files: 224 x 224 pixels are 12 x 12 here, of 16 dimensions 2 heads."""
    rng = torch.Generator().manual_seed(seed)
    state = {}

    def new(name, *shape):
        state[name] = torch.randn(*shape, generator=rng)

    def norm(name):
        new(f"{name}.weight", D)
        if norm_bias:  # a buffer of zeros, as their LayerNorm without a bias has
            state[f"{name}.bias"] = torch.zeros(D)

    waves = 10000 ** -(np.arange(D // 4) / (D // 4))
    first, second = (v.reshape(-1, 1) * waves for v in np.meshgrid(np.arange(3), np.arange(3), indexing="ij"))
    grid = np.concatenate([np.sin(first), np.cos(first), np.sin(second), np.cos(second)], 1)
    angles = np.arange(512)[:, None] * 10000 ** -(np.arange(D // 2) / (D // 2))
    line = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    for name, vocabulary, place in (
        ("rgb@224", 0, grid),
        ("tok_depth@224", 7, grid),
        ("tok_clip@224", 5, grid),
        ("det", 11, line),
    ):
        for side in ("encoder", "decoder") if vocabulary else ("encoder",):
            at = f"{side}_embeddings.{name}"
            state[f"{at}.pos_emb"] = torch.from_numpy(place).float()[None]
            new(f"{at}.mod_emb", 1, 1, D)
            if vocabulary:
                new(f"{at}.token_emb.weight", vocabulary, D)
        if vocabulary:
            state[f"{at}.mod_emb"] = state[f"encoder_embeddings.{name}.mod_emb"].clone()
            state[f"{at}.to_logits.weight"] = state[f"{at}.token_emb.weight"].clone()
        else:
            new(f"encoder_embeddings.{name}.proj.weight", D, PATCH * PATCH * 3)
    for i in range(2):
        at = f"encoder.{i}"
        norm(f"{at}.norm1")
        norm(f"{at}.norm2")
        new(f"{at}.attn.qkv.weight", 3 * D, D)
        new(f"{at}.attn.proj.weight", D, D)
        for fc in ("fc1", "fc3"):
            new(f"{at}.mlp.{fc}.weight", int(8 * D / 3), D)
        new(f"{at}.mlp.fc2.weight", D, int(8 * D / 3))
    for i in range(3):
        at = f"decoder.{i}"
        for name in ("norm1", "query_norm", "context_norm", "norm2"):
            norm(f"{at}.{name}")
        new(f"{at}.self_attn.qkv.weight", 3 * D, D)
        new(f"{at}.cross_attn.q.weight", D, D)
        new(f"{at}.cross_attn.kv.weight", 2 * D, D)
        for attention in ("self_attn", "cross_attn"):
            new(f"{at}.{attention}.proj.weight", D, D)
        for fc in ("fc1", "fc3"):
            new(f"{at}.mlp.{fc}.weight", int(8 * D / 3), D)
        new(f"{at}.mlp.fc2.weight", D, int(8 * D / 3))
    norm("encoder_norm")
    norm("decoder_norm")
    new("decoder_proj_context.weight", D, D)
    new("decoder_proj_context.bias", D)
    new("mask_token", 1, 1, D)
    return state


def without_clip(state):
    return {name: value for name, value in state.items() if "tok_clip" not in name}


@pytest.mark.parametrize("norm_bias", [True, False])
def test_where_every_tensor_went(norm_bias):
    state = without_clip(published(norm_bias=norm_bias))
    m = load_4m(model(), state, NAMES)
    own = dict(m.state_dict())
    went = {
        "norm.weight": "encoder_norm.weight",
        "decoder_norm.weight": "decoder_norm.weight",
        "context.weight": "decoder_proj_context.weight",
        "context.bias": "decoder_proj_context.bias",
        "tokens.depth.weight": "encoder_embeddings.tok_depth@224.token_emb.weight",
        "tokens.words.weight": "encoder_embeddings.det.token_emb.weight",
        "answers.depth.weight": "decoder_embeddings.tok_depth@224.to_logits.weight",
        "answers.words.weight": "decoder_embeddings.det.to_logits.weight",
    }
    for name in own:
        if name.startswith(("blocks.", "decoder.")):
            went[name] = name.replace("blocks.", "encoder.")
    for ours, theirs in went.items():
        assert torch.equal(own.pop(ours), state[theirs]), ours
    for ours, theirs in NAMES.items():
        assert torch.equal(own.pop(f"modality.{ours}"), state[f"encoder_embeddings.{theirs}.mod_emb"][0, 0])
    assert torch.equal(own.pop("mask_token"), state["mask_token"][0, 0])
    assert list(own) == ["pixels.weight"]


def test_patches_are_embedded_as_4m_does():
    """Their patches hold rows, columns, channels; ours channels, rows, columns."""
    state = without_clip(published())
    m = load_4m(model(), state, NAMES)
    pixels = torch.rand(2, 3, SIDE, SIDE)
    x = (pixels.numpy() - np.array([0.485, 0.456, 0.406])[:, None, None]) / np.array([0.229, 0.224, 0.225])[
        :, None, None
    ]
    cut = x.reshape(2, 3, 3, PATCH, 3, PATCH).transpose(0, 2, 4, 3, 5, 1).reshape(2, PLACES, -1)
    expected = cut @ state["encoder_embeddings.rgb@224.proj.weight"].double().numpy().T
    assert m.patches(pixels).detach().numpy() == pytest.approx(expected, abs=1e-4)
    assert m.position[:PLACES].numpy() == pytest.approx(
        state["encoder_embeddings.rgb@224.pos_emb"][0].numpy(), abs=1e-6
    )


def test_modalities_are_left_out_only_on_request():
    state = published()
    with pytest.raises(
        WeightsError, match=r"tok_clip@224\.\w+ is unknown.*leave_out=True ignores modalities"
    ):
        load_4m(model(), state, NAMES)
    a, b = load_4m(model(), state, NAMES, leave_out=True), load_4m(model(), without_clip(state), NAMES)
    assert all(
        torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )
    only = FourM(STREAMS[:2], Size(2, 3, D, 2), (SIDE, SIDE), PATCH)
    load_4m(only, state, {k: NAMES[k] for k in ("picture", "depth")}, leave_out=True)
    assert torch.equal(only.tokens["depth"].weight, a.tokens["depth"].weight)


def test_whatever_does_not_fit_is_listed_and_nothing_is_changed():
    state, zeros = without_clip(published()), torch.zeros
    depth, det = "decoder_embeddings.tok_depth@224", "decoder_embeddings.det"
    turned = (
        state["encoder_embeddings.rgb@224.pos_emb"].view(1, 3, 3, D).transpose(1, 2).reshape(1, PLACES, D)
    )
    wrong = [
        ({"encoder.0.attn.q_norm.weight": zeros(8)}, r"encoder\.0\.attn\.q_norm\.weight is unknown"),
        ({"encoder.2.norm1.weight": zeros(D)}, r"encoder\.2\.norm1\.weight is unknown"),
        ({"register_tokens": zeros(1, 4, D)}, "register_tokens is unknown"),
        (
            {"encoder.1.mlp.fc1.weight": zeros(64, D)},
            r"fc1\.weight is of \(64, 16\), the model needs \(42, 16\)",
        ),
        ({"mask_token": zeros(D)}, r"mask_token is of \(16,\), the model needs \(1, 1, 16\)"),
        (
            {f"{depth}.to_logits.weight": zeros(8, D)},
            r"to_logits\.weight is of \(8, 16\), the model needs \(7, 16\)",
        ),
        ({f"{depth}.mod_emb": zeros(1, 1, D)}, r"mod_emb differs from the tensor for modality\.depth"),
        (
            {f"{det}.token_emb.weight": zeros(11, D)},
            r"token_emb\.weight differs from the tensor for answers\.words",
        ),
        ({"decoder.1.query_norm.bias": torch.ones(D)}, r"decoder\.1\.query_norm\.bias is not 0"),
        ({"encoder_embeddings.rgb@224.pos_emb": turned}, r"rgb@224\.pos_emb differs from the sine-cosine"),
        (
            {"encoder_embeddings.rgb@224.pos_emb": zeros(1, 4, D)},
            r"is of \(1, 4, 16\), the model needs \(1, 9, 16\)",
        ),
    ]
    m = model()
    before = {name: value.clone() for name, value in m.state_dict().items()}
    for other, message in wrong:
        with pytest.raises(WeightsError, match=message):
            load_4m(m, {**state, **other}, NAMES, leave_out=True)
    for name in (
        "decoder_norm.weight",
        "mask_token",
        "encoder_embeddings.det.mod_emb",
        f"{depth}.to_logits.weight",
    ):
        with pytest.raises(WeightsError, match=f"in 1 tensors: {name} is missing"):
            load_4m(m, {k: v for k, v in state.items() if k != name}, NAMES)
    with pytest.raises(WeightsError, match="expected 4M's name of each, got names of depth, picture"):
        load_4m(m, state, {k: NAMES[k] for k in ("picture", "depth")})
    with pytest.raises(WeightsError, match=r"tok_normal@224\.token_emb\.weight is missing.* and \d+ more"):
        load_4m(m, {}, {**NAMES, "depth": "tok_normal@224"})
    assert all(torch.equal(before[name], value) for name, value in m.state_dict().items())


def test_a_grid_needs_the_table_of_logits_alone():
    """The decoder of a grid begins with mask tokens: its own table, which releases untie, is not read."""
    state = without_clip(published())
    state["decoder_embeddings.tok_depth@224.token_emb.weight"] = torch.zeros(7, D)
    m = load_4m(model(), state, NAMES)
    assert torch.equal(m.answers["depth"].weight, state["decoder_embeddings.tok_depth@224.to_logits.weight"])
