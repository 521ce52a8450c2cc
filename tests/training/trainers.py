"""Every trainer of the library at its smallest: a function that trains in a folder and returns the trained module.

Run as a script, it trains one of them and is killed, without a chance to clean up, when it is about to take a step::

    python trainers.py NAME FOLDER STEP
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), *(str(TESTS / name) for name in ("methods", "multitask", "source", "space"))]

from small_world import batch, net  # noqa: E402

Trainer = Callable[[Path], nn.Module]

net()  # which is trained once, before steps are counted


def pretrain_4m(folder: Path) -> nn.Module:
    from test_pretrain import RECIPE, batches, model
    from toy_space import shards

    from testtime.space.pretrain import pretrain

    space = shards(folder / "shards", 10, crops=2)
    recipe = replace(RECIPE, steps=12, every=5, accumulate=2)
    return pretrain(model(space), batches(space, recipe), recipe, folder / "run")


def pretrain_dino(folder: Path) -> nn.Module:
    from test_dino import model
    from test_pretrain import RECIPE, batches
    from toy_space import shards

    from testtime.space.pretrain import pretrain

    space = shards(folder / "shards", 10, crops=2)
    recipe = replace(RECIPE, steps=9, every=4, base_lr=0.01, clip=0.0)
    return pretrain(model(), batches(space, recipe), recipe, folder / "run")


def pretrain_mae(folder: Path) -> nn.Module:
    from test_pretrain import RECIPE, batches
    from toy_space import shards

    from testtime.space.mae import MaskedAutoencoder
    from testtime.space.model import Size
    from testtime.space.pretrain import pretrain

    space = shards(folder / "shards", 10, crops=2)
    recipe = replace(RECIPE, steps=9, every=4, base_lr=0.01)
    torch.manual_seed(0)
    model = MaskedAutoencoder(Size(1, 1, 16, 2), (16, 16), 4)
    return pretrain(model, batches(space, recipe), recipe, folder / "run")


def multitask(folder: Path) -> nn.Module:
    from test_training import RECIPE, Patches, network

    from testtime.multitask import train

    recipe = replace(RECIPE, iterations=14, every=4, weighting="automatic")
    return train(network(), Patches(), recipe, folder, seed=3)


def multitask_with_dropout(folder: Path) -> nn.Module:
    from test_training import RECIPE, Patches, network

    from testtime.multitask import train

    model = network(branch=False)
    model.encoder.append(nn.Dropout(0.3))
    return train(model, Patches(), replace(RECIPE, iterations=12, every=5), folder, seed=3)


def teacher(folder: Path) -> nn.Module:
    from test_transfer import Halves

    from testtime.multitask import Recipe
    from testtime.space.teachers import train_teacher

    recipe = Recipe(iterations=7, batch=2, lr=1e-3, every=3)
    return train_teacher(Halves(), folder, recipe, width=4).network


def transfer(folder: Path) -> nn.Module:
    from test_transfer import RECIPE, Halves, segmenter

    from testtime.space.transfer import transfer as train

    return train(segmenter(), Halves(), replace(RECIPE, epochs=4), folder, seed=3)


def detector(folder: Path) -> nn.Module:
    from test_detection import RECIPE, Bricks, detector

    from testtime.space.detection import train_detector

    return train_detector(detector(), Bricks(), Bricks().boxes, replace(RECIPE, epochs=2, every=5), folder)


def captioner(folder: Path) -> nn.Module:
    from test_captioning import RECIPE, Lamps, captioner

    from testtime.space.captioning import train_captioner

    return train_captioner(captioner(), Lamps(), Lamps().captions, replace(RECIPE, epochs=5), folder, seed=2)


def tokenizer_vq(folder: Path) -> nn.Module:
    from test_tokenizers import frames, vq

    made = vq()
    made.fit(frames(), 12, 8, folder=folder, every=5)
    return made


def tokenizer_of_features(folder: Path) -> nn.Module:
    from test_tokenizers import fsq

    from testtime.space.modalities import features

    maps = 5 + 3 * torch.randn(20, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    made = fsq(features("clip", 6), size=(4, 4), patch=1)
    made.fit(maps, 11, 8, folder=folder, every=4)
    return made


def label_shift(folder: Path) -> nn.Module:
    from test_label_shift import overlapping

    from testtime.source.label_shift import ShiftRecipe, frequencies, train_label_shift, with_label_shift

    data = overlapping((40, 20, 10), 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(data.batch([0])[0].numel(), 3))
    prior = frequencies(data.targets(range(len(data))), 3)
    shifted = with_label_shift(model, prior, hidden=16)
    return train_label_shift(shifted, data, ShiftRecipe(iterations=30, batch=16, every=8), folder, seed=1)


def augmix(folder: Path) -> nn.Module:
    spec = spec_from_file_location("train_source", TESTS.parent / "scripts" / "train_source.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    sys.modules["train_source"] = script  # its dataclass looks itself up there
    spec.loader.exec_module(script)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 3, 32, 32), generator=rng, dtype=torch.uint8)
    data = (images, torch.randint(10, (9,), generator=rng))
    settings = script.Settings("cifar10-resnet20", "", 4, 4, 0.1, 5e-4, 12.0, 0, False, 9)
    return script.train_augmix(settings, data, data, folder / "net.safetensors")


def batches(first: int = 0, count: int = 3, strength: float = 0.3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [batch(20, first + i, strength) for i in range(count)]


def shuffled() -> DataLoader:
    return DataLoader([pair for x, y in batches(count=2) for pair in zip(x, y, strict=True)], 8, shuffle=True)


def passes(folder: Path) -> nn.Module:
    from testtime.source.passes import passes_over

    model = nn.Sequential(net(), nn.Dropout(0.2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in passes_over(
        batches(),
        4,
        model,
        optimizer,
        lambda x, y: nn.functional.cross_entropy(model(x), y),
        lambda done: 1e-2 / (done + 1),
        file=folder / "net.safetensors",
    ):
        pass
    return model


def passes_in_half_precision(folder: Path) -> nn.Module:
    from testtime.source.passes import passes_over

    model = net().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    for _ in passes_over(
        [(x.bfloat16(), y) for x, y in batches()],
        4,
        model,
        optimizer,
        lambda x, y: nn.functional.cross_entropy(model(x), y),
        lambda _: 1e-3,
        file=folder / "net.safetensors",
    ):
        pass
    return model


def vida(folder: Path) -> nn.Module:
    from testtime.source.vida import train_vida

    return train_vida(net(), batches(), 4, high_rank=4, file=folder / "vida.safetensors", title=None)


def vida_shuffled(folder: Path) -> nn.Module:
    from testtime.source.vida import train_vida

    return train_vida(net(), shuffled(), 4, high_rank=4, file=folder / "vida.safetensors", title=None)


def itta(folder: Path) -> nn.Module:
    from testtime.source.itta import train_itta

    return train_itta(net(), batches(), 4, file=folder / "itta.safetensors", title=None)


def atlas(folder: Path) -> nn.Module:
    from testtime.source.atlas import train_task_vectors

    tasks = {"near": batches(900), "far": batches(940, strength=0.8)}
    return train_task_vectors(net(), tasks, 3, folder=folder, title=None)


def petal(folder: Path) -> nn.Module:
    from testtime.source.petal import swag_diagonal

    return swag_diagonal(net(), batches(), 4, file=folder / "swag.safetensors", title=None)


def dann(folder: Path) -> nn.Module:
    from testtime.source.dann import train_dann

    target = [x for x, _ in batches(50, 4, 0.8)]
    return train_dann(net(), batches(), target, passes=3, file=folder / "dann.safetensors", title=None)


def ecotta(folder: Path) -> nn.Module:
    from testtime.source.ecotta import train_meta

    return train_meta(net(), batches(), 3, file=folder / "meta.safetensors", title=None)


def meta_dmoe(folder: Path) -> nn.Module:
    from test_meta_dmoe import RECIPE, domains

    from testtime.source.meta_dmoe import train_meta_dmoe

    return train_meta_dmoe(net(), domains(), RECIPE, heads=4, seed=3, folder=folder, title=None)


TRAINERS: dict[str, Trainer] = {
    f.__name__: f
    for f in (
        pretrain_4m, pretrain_dino, pretrain_mae, multitask, multitask_with_dropout, teacher, transfer, detector,
        captioner, tokenizer_vq, tokenizer_of_features, label_shift, augmix, passes, passes_in_half_precision, vida,
        vida_shuffled, itta, atlas, petal, dann, ecotta, meta_dmoe,
    )
}  # fmt: skip


def main() -> None:
    name, folder, last = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    taken = 0

    def kill(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken == last:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.set_num_threads(1)
    register_optimizer_step_pre_hook(kill)
    TRAINERS[name](folder)


if __name__ == "__main__":
    main()
