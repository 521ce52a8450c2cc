"""The 4M model: recomputed in numpy, blind where it must be, keyed by name."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from testtime.space.masking import Stream
from testtime.space.model import Batch, Encoder, FourM, Size, grid_embedding

STREAMS = (
    Stream("rgb", "pixels", 4),
    Stream("tok_depth", "grid", 4, 7),
    Stream("tok_edge", "grid", 4, 5),
    Stream("boxes", "sequence", 6, 9),
)
SMALL = Size(2, 2, 16, 2)


def model(streams=STREAMS, seed=0):
    torch.manual_seed(seed)
    return FourM(streams, SMALL, (8, 8), 4)


def batch():
    """Two samples: pixels, depth and boxes are shown; depth, edges and boxes asked for. Places: 0, 4, 8, 12 onwards."""
    torch.manual_seed(1)
    shown = torch.tensor([[0, 3, 5, 12, 13, -1], [1, 6, 7, -1, -1, -1]])
    asked = torch.tensor([[4, 8, 9, 12, 13, 14], [5, 8, -1, -1, -1, -1]])
    return Batch(
        torch.rand(2, 3, 8, 8),
        shown,
        torch.tensor([[0, 0, 6, 3, 8, 0], [0, 2, 1, 0, 0, 0]]),
        asked,
        torch.tensor([[2, 4, 0, 5, 6, 7], [3, 1, 0, 0, 0, 0]]),
        torch.tensor([[0, 0, 0, 1, 5, 6], [0, 0, 0, 0, 0, 0]]),
    )


def layer_norm(x, weight):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * weight


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(q, k, v, allowed, heads=2):
    out = np.zeros_like(q)
    width = q.shape[1] // heads
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / np.sqrt(width)
        out[:, part] = softmax(np.where(allowed, scores, -np.inf)) @ v[:, part]
    return out


def mlp(x, p, at):
    gate = x @ p[f"{at}.fc1.weight"].T
    return (gate / (1 + np.exp(-gate)) * (x @ p[f"{at}.fc3.weight"].T)) @ p[f"{at}.fc2.weight"].T


def test_the_whole_forward_recomputed_in_numpy():
    m, b = model(), batch()
    p = {k: v.detach().double().numpy() for k, v in m.state_dict().items()}
    d = 16
    place = [np.arange(4)] * 3 + [np.arange(6)]
    waves = lambda at, width: np.concatenate(  # noqa: E731
        [f(at[:, None] / 10000 ** (np.arange(width // 2) / (width // 2))) for f in (np.sin, np.cos)], 1
    )
    grid = np.concatenate([waves(np.arange(4) // 2, d // 2), waves(np.arange(4) % 2, d // 2)], 1)
    names = [s.name for s in STREAMS]
    embedding = np.concatenate(
        [
            (grid if s.kind != "sequence" else waves(place[i], d)) + p[f"modality.{s.name}"]
            for i, s in enumerate(STREAMS)
        ]
    )
    stream = np.repeat(np.arange(4), [4, 4, 4, 6])
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    losses = {name: [] for name in names[1:]}
    for i in range(2):
        picture = (b.pixels[i].double().numpy() - mean[:, None, None]) / deviation[:, None, None]
        patches = (
            np.stack([picture[:, r : r + 4, c : c + 4].reshape(-1) for r in (0, 4) for c in (0, 4)])
            @ p["pixels.weight"].T
        )
        shown = [(s, t) for s, t in zip(b.shown[i].tolist(), b.shown_id[i].tolist(), strict=True) if s >= 0]
        content = [
            patches[s] if stream[s] == 0 else p[f"tokens.{names[stream[s]]}.weight"][t] for s, t in shown
        ]
        places = [s for s, _ in shown]
        x = np.stack(content) + embedding[places]
        for block in range(2):
            at = f"blocks.{block}"
            q, k, v = np.split(layer_norm(x, p[f"{at}.norm1.weight"]) @ p[f"{at}.attn.qkv.weight"].T, 3, 1)
            x = x + attention(q, k, v, True) @ p[f"{at}.attn.proj.weight"].T
            x = x + mlp(layer_norm(x, p[f"{at}.norm2.weight"]), p, f"{at}.mlp")
        x = layer_norm(x, p["norm.weight"])
        context = x @ p["context.weight"].T + p["context.bias"] + embedding[places]
        asked = [
            (a, t, f)
            for a, t, f in zip(
                b.asked[i].tolist(), b.asked_id[i].tolist(), b.before_id[i].tolist(), strict=True
            )
            if a >= 0
        ]
        at_places = np.array([a for a, _, _ in asked])
        of = stream[at_places]
        y = np.stack(
            [p["answers.boxes.weight"][f] if stream[a] == 3 else p["mask_token"] for a, _, f in asked]
        )
        y = y + embedding[at_places]
        own = of[:, None] == of[None]
        own &= (of[:, None] != 3) | (at_places[:, None] >= at_places[None])
        for block in range(2):
            at = f"decoder.{block}"
            q, k, v = np.split(
                layer_norm(y, p[f"{at}.norm1.weight"]) @ p[f"{at}.self_attn.qkv.weight"].T, 3, 1
            )
            y = y + attention(q, k, v, own) @ p[f"{at}.self_attn.proj.weight"].T
            q = layer_norm(y, p[f"{at}.query_norm.weight"]) @ p[f"{at}.cross_attn.q.weight"].T
            kv = layer_norm(context, p[f"{at}.context_norm.weight"]) @ p[f"{at}.cross_attn.kv.weight"].T
            k, v = np.split(kv, 2, 1)
            y = y + attention(q, k, v, True) @ p[f"{at}.cross_attn.proj.weight"].T
            y = y + mlp(layer_norm(y, p[f"{at}.norm2.weight"]), p, f"{at}.mlp")
        y = layer_norm(y, p["decoder_norm.weight"])
        for (a, target, _), h in zip(asked, y, strict=True):
            name = names[stream[a]]
            losses[name].append(-np.log(softmax(h @ p[f"answers.{name}.weight"].T)[target]))
    found = m(b)
    for name, values in losses.items():
        assert found[name].item() == pytest.approx(np.mean(values), rel=1e-5)


def test_empty_slots_and_their_contents_mean_nothing():
    m, b = model(), batch()
    other = replace(
        b,
        shown=torch.cat([b.shown, torch.full((2, 3), -1)], 1),
        shown_id=torch.cat([b.shown_id, torch.full((2, 3), 4)], 1),
        asked_id=torch.where(b.asked < 0, 1, b.asked_id),
    )
    one, two = m(b), m(other)
    assert all(one[k].item() == pytest.approx(two[k].item(), rel=1e-5) for k in one)


def test_a_sample_that_shows_nothing_is_finite():
    m, b = model(), batch()
    shown = b.shown.clone()
    shown[1] = -1
    assert all(torch.isfinite(v) for v in m(replace(b, shown=shown)).values())


def test_a_stream_that_is_not_asked_has_no_loss_and_no_gradient():
    m, b = model(), batch()
    asked = torch.where((b.asked >= 8) & (b.asked < 12), -1, b.asked)
    losses = m(replace(b, asked=asked))
    assert losses["tok_edge"].item() == 0
    torch.stack(list(losses.values())).sum().backward()
    assert m.answers["tok_edge"].weight.grad.abs().sum() == 0
    assert m.answers["tok_depth"].weight.grad.abs().sum() > 0


def test_decoder_tokens_do_not_see_other_streams_nor_later_tokens_of_a_sequence():
    m, b = model(), batch()
    encoded = m.encode(b)
    base = m.decode(b, encoded)
    before = b.before_id.clone()
    before[0, 4] = 2  # the second of three box tokens
    moved = m.decode(replace(b, before_id=before), encoded)
    same = torch.isclose(moved, base, atol=1e-6).all(-1)[0].tolist()
    assert same == [True, True, True, True, False, False]


def test_the_order_of_the_streams_changes_nothing():
    m, b = model(), batch()
    order = [2, 3, 0, 1]
    streams = tuple(STREAMS[i] for i in order)
    other = model(streams)
    other.load_state_dict(m.state_dict())
    new = dict(zip("rdeb", (10, 14, 0, 4), strict=True))
    table = torch.tensor(
        [new[k] + i for k, n in zip("rdeb", (4, 4, 4, 6), strict=True) for i in range(n)] + [-1]
    )
    moved = replace(b, shown=table[b.shown], asked=table[b.asked])
    one, two = m(b), other(moved)
    assert all(one[k].item() == pytest.approx(two[k].item(), rel=1e-5) for k in one)


def test_the_encoder_of_pictures_is_the_models_own():
    m = model()
    encoder = Encoder(m)
    x = torch.rand(2, 3, 8, 8)
    places = torch.arange(4).repeat(2, 1)
    zeros = torch.zeros_like(places)
    whole = m.encode(Batch(x, places, zeros, zeros, zeros, zeros))
    assert torch.allclose(encoder(x), whole, atol=1e-6)
    assert encoder.blocks[0] is m.blocks[0]
    assert (encoder.dim, encoder.grid, encoder.size) == (16, (2, 2), (8, 8))


def test_the_papers_sizes(monkeypatch):
    for name in ("kaiming_uniform_", "xavier_uniform_", "uniform_", "normal_"):  # sizes alone are looked at
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *_, **__: tensor)
    streams = [Stream("rgb", "pixels", 196), Stream("tok_depth", "grid", 196, 8192)]
    m, b = FourM(streams, "S"), FourM(streams, "B")
    block = 4 * 512**2 + 3 * 512 * int(8 * 512 / 3) + 2 * 512
    assert sum(p.numel() for p in m.blocks.parameters()) == 8 * block
    assert len(m.decoder) == 8
    assert (len(b.blocks), b.dim, b.blocks[0].mlp.fc1.out_features) == (12, 768, 2048)


def test_query_key_and_value_are_initialised_as_matrices_of_their_own():
    m = FourM([Stream("rgb", "pixels", 64), Stream("tok_depth", "grid", 64, 9)], "tiny", (64, 64), 8)
    bound = np.sqrt(6 / (96 + 96))
    weight = m.blocks[0].attn.qkv.weight
    assert weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert m.tokens["tok_depth"].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_grid_embedding_tells_rows_from_columns():
    e = grid_embedding((2, 3), 8)
    assert e.shape == (6, 8)
    assert torch.equal(e[0, 4:], e[3, 4:])  # the same column
    assert torch.equal(e[0, :4], e[2, :4])  # the same row
    with pytest.raises(ValueError, match="multiple of four"):
        grid_embedding((2, 2), 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((STREAMS, "XXL", (8, 8), 4), "no size 'XXL'; there are tiny, mini, T, S, B"),
        ((STREAMS, SMALL, (8, 9), 4), "does not divide"),
        ((STREAMS, SMALL, (16, 16), 4), "rgb has 4 places, but the picture has 16 patches"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FourM(*arguments)
