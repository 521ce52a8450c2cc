"""Train the source models that testtime does not take from others.

    python scripts/train_source.py digits
    python scripts/train_source.py camvid --data DIR
    python scripts/train_source.py augmix --data DIR --out wrn40_2_augmix.safetensors --device cuda --amp
    python scripts/train_source.py augmix --model cifar10-resnet20 --start cifar10_resnet20.safetensors \
        --epochs 5 --lr 0.02 --data DIR --out cifar10_resnet20_augmix.safetensors --amp

``digits`` writes the network of the embedded default into the package, the same bytes on the same machine
and versions, in under a minute on one core. ``camvid`` writes the segmenter of road scenes into the package:
CamVid's 305 training frames by day at 96x128, mirrored, scaled and cropped at random, 80 passes of AdamW in
10 minutes on one core. ``augmix`` trains a network (a WideResNet-40-2 by default), from random or from given
weights, on CIFAR-10 with AugMix and its Jensen-Shannon loss (Hendrycks et al. 2020: SGD with Nesterov momentum
0.9, learning rate 0.1, cosine to 1e-6, weight decay 5e-4, batch 128, 100 epochs, lambda 12); it saves its state
after every epoch and every ten minutes, and continues from there when called again.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from testtime.data import ImageSet, camvid, cifar10, embedded
from testtime.data.augmix import augmix, jsd_loss
from testtime.errors import WeightsError
from testtime.files import write_bytes
from testtime.labels import IGNORE
from testtime.metrics import MeanIoU
from testtime.models import build_model, load_model
from testtime.models.preprocessed import Preprocessed
from testtime.models.small_segmenter import ROADS, SmallSegmenter
from testtime.models.weights import load_weights
from testtime.models.zoo import CENTRED, PACKAGED
from testtime.training.loop import Files, Plan, Training

Labelled = tuple[Tensor, Tensor]

DIGITS_OUT = PACKAGED / "digits_cnn.safetensors"
DIGITS_EPOCHS = 40
DIGITS_SEED = 0
ROADS_OUT = PACKAGED / ROADS
ROADS_EPOCHS = 80
ROADS_SEED = 0
ROADS_SIZE = (96, 128)


def derived(seed: int, *counters: int) -> torch.Generator:
    """Return a generator for one step of one purpose, which is a function of the numbers."""
    mixed = seed
    for counter in counters:
        mixed = (mixed * 1_000_003 + counter + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def cropped(images: Tensor, padding: int, generator: torch.Generator, flip: bool) -> Tensor:
    """Shift each image by up to `padding` pixels, with black at the border, and mirror half of them."""
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = torch.randint(0, 2 * padding + 1, (n, 1), generator=generator) + torch.arange(height)
    columns = torch.randint(0, 2 * padding + 1, (n, 1), generator=generator) + torch.arange(width)
    if flip:
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).to(images.device)
    index = index.view(n, 1, -1).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).view(images.shape)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Return the accuracy in percent on float images in [0, 1], or on uint8 ones."""
    model.eval()
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    scaled = ((x.float() / 255 if x.dtype == torch.uint8 else x, y) for x, y in parts)
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in scaled)
    return 100 * right / len(labels)


def pixels(images: ImageSet) -> tuple[Tensor, Tensor]:
    """Return all images as uint8 (N, C, H, W), and their labels."""
    return torch.stack([images[i] for i in range(len(images))]), images.targets(range(len(images)))


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file atomically."""
    write_bytes(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}))


def train_digits(out: Path, epochs: int = DIGITS_EPOCHS) -> None:
    """Train the digits network on the training half of the embedded default, and print its accuracy on the other half."""
    torch.manual_seed(DIGITS_SEED)
    sets = embedded()
    x, y = pixels(sets.train)
    test_x, test_y = sets.test.batch(range(len(sets.test))), sets.test.targets(range(len(sets.test)))
    model = build_model("digits-cnn").train()
    per_epoch = math.ceil(len(x) / 64)
    steps = epochs * per_epoch
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.2)

    def loss(step: int) -> dict[str, Tensor]:
        epoch, at = divmod(step, per_epoch)
        rows = torch.randperm(len(x), generator=derived(DIGITS_SEED, epoch)).split(64)[at]
        images = cropped(x[rows], 3, derived(DIGITS_SEED, epoch, at), flip=False).float() / 255
        return {"loss": F.cross_entropy(model(images), y[rows])}

    for _ in Training(model, optimizer, Plan(steps), "digits").iterate(loss):
        schedule.step()
    write({k: v for k, v in model.model.state_dict().items() if not k.endswith("num_batches_tracked")}, out)
    noise = torch.randn(test_x[:, :1].shape, generator=derived(DIGITS_SEED, 1, 1))
    corrupted = {
        "clean": test_x,
        "noise 0.38": (test_x + 0.38 * noise).clamp(0, 1),
        "contrast 0.05": (test_x - test_x.mean((2, 3), True)) * 0.05 + test_x.mean((2, 3), True),
    }
    for name, images in corrupted.items():
        print(f"{name}: {accuracy(model, images, test_y):.2f} %")


def zoomed(x: Tensor, y: Tensor, generator: torch.Generator) -> Labelled:
    """Mirror half of the images with their labels, and cut out a window of 0.6 to 1 of each side, at the old size."""
    n, _, height, width = x.shape
    share = 0.6 + 0.4 * torch.rand(n, 1, 1, 1, generator=generator)
    centre = (1 - share.view(n, 1, 1)) * (2 * torch.rand(n, 1, 2, generator=generator) - 1)
    mirror = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, -1.0, 1.0)
    identity = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]).expand(n, 2, 3)
    grid = F.affine_grid(identity, [n, 1, height, width], align_corners=False) * share
    grid = (grid + centre[:, None]) * torch.cat([mirror, torch.ones_like(mirror)], -1)
    images = F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)
    labels = F.grid_sample(
        y[:, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return images, labels[:, 0].long()


def train_roads(
    train: Labelled, test: Labelled, out: Path, epochs: int = ROADS_EPOCHS, state: Path | None = None
) -> float:
    """Train the segmenter of road scenes, write its weights, and return its mIoU on the test frames in percent.

    Args:
        train: images (N, 3, H, W) in [0, 1] and labels (N, H, W).
        test: images and labels of the mIoU.
        out: file of the weights.
        epochs: number of passes over the images.
        state: checkpoint of the unfinished training; None for none.
    """
    torch.manual_seed(ROADS_SEED)
    (x, y), batch = train, 12
    model = Preprocessed(SmallSegmenter(11), *CENTRED).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=1e-2)
    per_epoch = math.ceil(len(x) / batch)
    steps = epochs * per_epoch

    def loss(step: int) -> dict[str, Tensor]:
        epoch, at = divmod(step, per_epoch)
        rows = torch.randperm(len(x), generator=derived(ROADS_SEED, epoch)).split(batch)[at]
        images, labels = zoomed(x[rows], y[rows], derived(ROADS_SEED, epoch, at))
        images = images.contiguous(memory_format=torch.channels_last)
        return {"loss": F.cross_entropy(model(images), labels, ignore_index=IGNORE)}

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))

    files = None if state is None else Files(state)
    plan = Plan(steps, rate, log_every=10**9, save_every=10**9, save_seconds=120)
    for step in Training(model, optimizer, plan, "roads", files, {"epochs": epochs}).iterate(loss):
        if (step + 1) % (10 * per_epoch) == 0:
            print(f"epoch {(step + 1) // per_epoch}: {mean_iou(model, *test):.2f}", flush=True)
            model.train()
    write({k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}, out)
    return mean_iou(model, *test)


def load_roads(file: Path) -> nn.Module:
    """Return the segmenter with the weights of a file."""
    model = Preprocessed(SmallSegmenter(11), *CENTRED)
    load_weights(model, file)
    return model


@torch.no_grad()
def mean_iou(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the mIoU in percent in evaluation mode."""
    model.eval()
    meter = MeanIoU(11)
    for x, y in zip(images.split(16), labels.split(16), strict=True):
        meter.update(model(x), y)
    return meter.value()


@dataclass(frozen=True)
class Settings:
    """Settings of a training run, which continues only with the same ones."""

    model: str
    start: str
    epochs: int
    batch: int
    lr: float
    weight_decay: float
    jsd: float
    seed: int
    amp: bool
    images: int


def learning_rate(settings: Settings, step: int, steps: int) -> float:
    """Return the learning rate of a step, a cosine from lr to 1e-6."""
    return 1e-6 + (settings.lr - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train_augmix(
    settings: Settings, train: Labelled, test: Labelled, out: Path, max_steps: int = 0, log_every: int = 50
) -> nn.Module:
    """Train with AugMix from the last saved epoch on, and write the weights.

    Args:
        settings: settings of the training.
        train: images (N, 3, H, W) uint8 and labels (N,), on the device of the training.
        test: images and labels whose accuracy is printed after every epoch.
        out: file of the weights; the state of the training and its log lie beside it.
        max_steps: number of steps after which this call stops; 0 takes all.
        log_every: steps between two lines of the log.
    """
    torch.manual_seed(settings.seed)
    (x, y), seed, device = train, settings.seed, train[0].device
    per_epoch = len(x) // settings.batch
    if per_epoch == 0:
        raise SystemExit(f"{len(x)} training images are fewer than --batch {settings.batch}")
    steps = settings.epochs * per_epoch
    model = load_model(settings.model, settings.start) if settings.start else build_model(settings.model)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1.0, momentum=0.9, weight_decay=settings.weight_decay, nesterov=True
    )

    def loss(step: int) -> dict[str, Tensor]:
        epoch, at = divmod(step, per_epoch)
        order = torch.randperm(len(x), generator=derived(seed, 3, epoch)).to(device)
        rows = order[at * settings.batch : (at + 1) * settings.batch]
        clean = cropped(x[rows], 4, derived(seed, 0, step), flip=True)
        first, second = (augmix(clean, derived(seed, view, step)) for view in (1, 2))
        views = model(torch.cat([clean.float() / 255, first, second])).chunk(3)
        with torch.autocast(device.type, enabled=False):
            return {"loss": jsd_loss(*views, y[rows], settings.jsd)}

    plan = Plan(
        steps,
        lambda step: learning_rate(settings, step, steps),
        "bfloat16" if settings.amp else "float32",
        log_every=log_every,
        save_every=per_epoch,
    )
    files = Files(out.with_suffix(".state.safetensors"), log=out.with_suffix(".losses.jsonl"))
    try:
        training = Training(model, optimizer, plan, out.stem, files, asdict(settings), seed)
    except WeightsError as error:
        raise SystemExit(str(error)) from error
    last = training.done + max_steps if max_steps else steps
    for step in training.iterate(loss):
        if (step + 1) % per_epoch == 0:
            print(
                f"epoch {(step + 1) // per_epoch}/{settings.epochs}  test accuracy {accuracy(model, *test):.2f} %"
            )
            model.train()
        if step + 1 == last < steps:
            break
    write(model.model.state_dict(), out)
    print(f"{out}: load_model({settings.model!r}, path)")
    return model


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    digits = commands.add_parser("digits", help="the packaged network of the embedded default")
    digits.add_argument("--out", type=Path, default=DIGITS_OUT)
    roads = commands.add_parser("camvid", help="the packaged segmenter of road scenes")
    roads.add_argument("--data", type=Path, required=True, help="the folder that holds CamVid")
    roads.add_argument("--out", type=Path, default=ROADS_OUT)
    roads.add_argument("--epochs", type=int, default=ROADS_EPOCHS)
    roads.add_argument("--state", type=Path, help="file of the unfinished training, which continues from it")
    wide = commands.add_parser("augmix", help="a network with AugMix on CIFAR-10")
    wide.add_argument(
        "--model", default="cifar10-wrn40-2-augmix", help="a CIFAR-10 network of testtime.models"
    )
    wide.add_argument("--start", type=Path, help="initial weights; random by default")
    wide.add_argument("--data", type=Path, required=True, help="the folder that holds cifar-10-batches-bin")
    wide.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    wide.add_argument("--epochs", type=int, default=100)
    wide.add_argument("--batch", type=int, default=128)
    wide.add_argument("--lr", type=float, default=0.1)
    wide.add_argument("--weight-decay", type=float, default=5e-4)
    wide.add_argument("--jsd", type=float, default=12.0, help="weight of the Jensen-Shannon divergence")
    wide.add_argument("--seed", type=int, default=0)
    wide.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    wide.add_argument("--amp", action="store_true", help="run the network in bfloat16")
    wide.add_argument("--max-steps", type=int, default=0, help="stop after so many steps, for a trial")
    wide.add_argument("--every", type=int, default=50, help="steps between two lines of the log")
    return top


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    if options.command == "digits":
        train_digits(options.out)
        return
    if options.command == "camvid":
        day = {name: camvid(options.data, name, "day") for name in ("train", "val", "test")}
        sets = {name: frames.batch(range(len(frames)), ROADS_SIZE) for name, frames in day.items()}
        labelled = {name: (x, labels["semseg"]) for name, (x, labels) in sets.items()}
        found = train_roads(labelled["train"], labelled["val"], options.out, options.epochs, options.state)
        test_iou = mean_iou(load_roads(options.out), *labelled["test"])
        print(f"mIoU by day: {found:.2f} % (val), {test_iou:.2f} % (test)")
        return
    device = torch.device(options.device)
    train, test = (
        tuple(part.to(device) for part in pixels(cifar10(options.data, name, complete=False)))
        for name in ("train", "test")
    )
    settings = Settings(
        options.model,
        str(options.start or ""),
        options.epochs,
        options.batch,
        options.lr,
        options.weight_decay,
        options.jsd,
        options.seed,
        options.amp,
        len(train[0]),
    )
    train_augmix(settings, train, test, options.out, options.max_steps, options.every)


if __name__ == "__main__":
    main()
