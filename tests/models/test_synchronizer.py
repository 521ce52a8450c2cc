"""The synchronizer: masks of every strategy, the masked autoencoder recomputed, keyed by name."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from testtime.models.synchronizer import SynchronizerOptions, legacy_order, position_embedding, visible_tokens
from testtime.multitask import Depth, Edges, Normals, Segmentation, Synchronizer

TASKS = {t.name: t for t in (Segmentation(tuple("abc")), Depth(), Normals(), Edges())}
SMALL = {"features": 4, "size": 16, "patch": 4, "width": 8, "depth": 2, "decoder_depth": 1, "heads": 2}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_papers_ratio_shows_51_of_256_tokens():
    assert visible_tokens(3, 1, 256, 0.8, "same", rng()).shape == (3, 51)


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75, 0.95])
@pytest.mark.parametrize("strategy", ["same", "random", "disjoint", "hide"])
def test_every_strategy_shows_what_its_name_says(strategy, ratio):
    seen = visible_tokens(5, 4, 16, ratio, strategy, rng())
    keep = max(1, int(16 * (1 - ratio)))
    for row in seen:
        assert len(set(row.tolist())) == len(row)
        places = [sorted((row[row // 16 == task] % 16).tolist()) for task in range(4)]
        if strategy == "same":
            assert all(p == places[0] for p in places)
            assert len(places[0]) == keep
        elif strategy == "random":
            assert [len(p) for p in places] == [keep] * 4
        elif strategy == "disjoint":
            together = [p for each in places for p in each]
            assert len(set(together)) == len(together)
            assert [len(p) for p in places] == [min(keep, 4)] * 4
        else:
            hidden = sum(not p for p in places)
            assert hidden == min(max(1, round(4 * ratio)), 3)
            assert all(len(p) in (0, 16) for p in places)
    if strategy == "random" and ratio == 0.5:
        assert any(sorted(a.tolist()) != sorted(b.tolist()) for a, b in itertools.pairwise(seen))


def test_masks_are_a_function_of_the_generator():
    branch = Synchronizer(TASKS, 6, **SMALL)
    assert torch.equal(branch.draw(4, rng(3)), branch.draw(4, rng(3)))
    assert not torch.equal(branch.draw(4, rng(3)), branch.draw(4, rng(4)))


def test_the_position_embedding_is_that_of_masked_autoencoders():
    table = position_embedding(3, 8).numpy()
    for row in range(3):
        for column in range(3):
            expected = []
            for place in (column, row):
                angles = [place / 10000 ** (k / 2) for k in range(2)]
                expected += [*np.sin(angles), *np.cos(angles)]
            np.testing.assert_allclose(table[3 * row + column], expected, atol=1e-6)


def test_the_synchronizer_is_a_masked_autoencoder_over_stacked_latents():
    """Recomputed with one kernel over the stacked channels, tokens dropped and filled by hand."""
    torch.manual_seed(0)
    branch = Synchronizer(TASKS, 6, **SMALL, options=SynchronizerOptions(ratio=0.5)).double().eval()
    z = torch.randn(2, 6, 5, 7, dtype=torch.float64, generator=rng())
    seen = branch.draw(2, rng(1))
    projected, synchronised = branch(z, (10, 12), seen)

    kernel = torch.cat([F.conv2d(z, branch.project[k].weight, branch.project[k].bias) for k in TASKS], 1)
    square = F.interpolate(kernel, (16, 16), mode="bilinear", align_corners=False)
    stacked = torch.cat([branch.embed[k].weight for k in TASKS], 1)
    tokens = F.conv2d(square, stacked, branch.embed_bias, stride=4).flatten(2).transpose(1, 2)
    tokens = tokens + branch.position
    kept = torch.stack([t[s] for t, s in zip(tokens, seen, strict=True)])
    for block in branch.encoder:
        kept = block(kept)
    kept = branch.between(branch.encoder_norm(kept))
    full = branch.mask_token.repeat(2, 16, 1)
    for i in range(2):
        for j, place in enumerate(seen[i]):
            full[i, place] = kept[i, j]
    full = full + branch.position
    for block in branch.decoder:
        full = block(full)
    full = branch.decoder_norm(full)
    for name, task in TASKS.items():
        patches = branch.predict[name](full)
        picture = torch.zeros(2, task.channels, 16, 16, dtype=torch.float64)
        for place in range(16):
            r, c = divmod(place, 4)
            block_ = patches[:, place].view(2, 4, 4, task.channels).permute(0, 3, 1, 2)
            picture[:, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] = block_
        expected = F.interpolate(picture, (10, 12), mode="bilinear", align_corners=False)
        torch.testing.assert_close(synchronised[name], expected)
        zi = F.conv2d(z, branch.project[name].weight, branch.project[name].bias)
        yi = F.conv2d(zi, branch.read[name].weight, branch.read[name].bias)
        torch.testing.assert_close(
            projected[name], F.interpolate(yi, (10, 12), mode="bilinear", align_corners=False)
        )


def test_a_hidden_token_has_no_influence_and_a_seen_one_has():
    torch.manual_seed(0)
    branch = Synchronizer(
        TASKS, 6, **SMALL, options=SynchronizerOptions(layout="per_task", strategy="hide", ratio=0.5)
    ).eval()
    latents = {name: torch.randn(1, 4, 16, 16, generator=rng(i)) for i, name in enumerate(TASKS)}
    seen = torch.arange(32)[None]  # the first two tasks
    before = branch.synchronise(latents, (16, 16), seen)
    for name in ("normals", "edge"):
        after = branch.synchronise({**latents, name: latents[name] + 1}, (16, 16), seen)
        assert all(torch.equal(before[k], after[k]) for k in TASKS), name
    after = branch.synchronise({**latents, "depth": latents["depth"] + 1}, (16, 16), seen)
    assert all((before[k] - after[k]).abs().max() > 1e-6 for k in TASKS)


def test_tasks_are_keyed_by_name_whatever_their_order():
    torch.manual_seed(0)
    branch = Synchronizer(TASKS, 6, **SMALL).eval()
    turned = Synchronizer(dict(reversed(TASKS.items())), 6, **SMALL).eval()
    turned.load_state_dict(branch.state_dict())
    z, seen = torch.randn(2, 6, 4, 4, generator=rng()), branch.draw(2, rng())
    for one, other in zip(branch(z, (16, 16), seen), turned(z, (16, 16), seen), strict=True):
        for name in TASKS:
            torch.testing.assert_close(one[name], other[name])


def test_the_source_loss_is_that_of_both_outputs():
    torch.manual_seed(0)
    branch = Synchronizer(
        TASKS, 6, **SMALL, options=SynchronizerOptions(lambda_tp=0.5, lambda_tbs=2.0)
    ).eval()
    z, x = torch.randn(2, 6, 4, 4, generator=rng()), torch.rand(2, 3, 16, 16)
    labels = {"depth": torch.rand(2, 1, 16, 16), "semseg": torch.randint(0, 3, (2, 16, 16))}
    losses = branch.source_loss(torch.nn.Identity(), x, [z], labels, rng(5))
    projected, synchronised = branch(z, (16, 16), branch.draw(2, rng(5)))
    assert set(losses) == {"depth", "semseg"}  # no label, no loss
    for name in losses:
        task = TASKS[name]
        expected = 0.5 * task.loss(projected[name], labels[name]) + 2 * task.loss(
            synchronised[name], labels[name]
        )
        assert losses[name].item() == pytest.approx(expected.item(), rel=1e-5)


def test_without_projection_it_sees_the_latent_itself_and_with_reconstruction_predicts_the_image():
    branch = Synchronizer(TASKS, 6, **SMALL, options=SynchronizerOptions(projection=False, ratio=0.0))
    assert list(branch.embed) == ["z"]
    losses = branch.source_loss(
        torch.nn.Identity(),
        torch.rand(1, 3, 16, 16),
        [torch.randn(1, 6, 4, 4)],
        {"depth": torch.rand(1, 1, 16, 16)},
        rng(),
    )
    assert set(losses) == {"depth"}
    image = Synchronizer(TASKS, 6, **SMALL, options=SynchronizerOptions(projection=False, reconstruct=True))
    x = torch.rand(1, 3, 16, 16)
    assert set(image.source_loss(torch.nn.Identity(), x, [torch.randn(1, 6, 4, 4)], {}, rng())) == {"image"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 15}, "multiple of patch"),
        ({"ratio": 1.0}, "lies in"),
        ({"strategy": "random"}, "layout='per_task'"),
        ({"layout": "per_task", "projection": False}, "layout='channels'"),
    ],
)
def test_bad_settings_are_refused(wrong, message):
    size = {"size": wrong.pop("size")} if "size" in wrong else {}
    with pytest.raises(ValueError, match=message):
        Synchronizer(TASKS, 6, **{**SMALL, **size}, options=SynchronizerOptions(**wrong))


def test_the_legacy_order_reads_stacked_channels_in_another_order():
    torch.manual_seed(0)
    tasks = {"semseg": Segmentation(("a", "b")), "depth": Depth(), "normals": Normals(), "edge": Edges()}
    branch = Synchronizer(tasks, 5, 4, 16, 4, 8, 1, 1, 2)
    source, target = ("depth", "edge", "normals", "semseg"), ("semseg", "depth", "normals", "edge")
    moved = legacy_order(branch, source, target)
    z = torch.rand(2, 5, 8, 8)
    with torch.no_grad():
        (_, before), (_, after) = (b(z, (16, 16)) for b in (branch, moved))
    stacked = torch.cat([before[name] for name in source], 1)
    for name, part in zip(target, stacked.split([2, 1, 3, 1], 1), strict=True):
        assert torch.allclose(after[name], part, atol=1e-6)
    assert torch.allclose(after["semseg"][:, :1], before["depth"], atol=1e-6)
    again = legacy_order(branch, source, source)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), branch.parameters(), strict=True))
    with pytest.raises(ValueError, match="expected the tasks"):
        legacy_order(branch, source[:3], target)
