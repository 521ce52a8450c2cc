"""Train the source models that testtime does not take from others.

    python scripts/train_source.py digits
    python scripts/train_source.py augmix --data DIR --out wrn40_2_augmix.safetensors --device cuda --amp
    python scripts/train_source.py augmix --model cifar10-resnet20 --start cifar10_resnet20.safetensors \
        --epochs 5 --lr 0.02 --data DIR --out cifar10_resnet20_augmix.safetensors --amp

``digits`` writes the network of the embedded default into the package, the same bytes on the same machine
and versions, in under a minute on one core. ``augmix`` trains a network (a WideResNet-40-2 unless
told otherwise), from the beginning or from given weights, on CIFAR-10 with AugMix and its
Jensen-Shannon loss (Hendrycks et al. 2020: SGD with Nesterov momentum 0.9, learning rate 0.1, cosine to
1e-6, weight decay 5e-4, batch 128, 100 epochs, lambda 12); it saves its state after every epoch and
continues from there when called again.
"""

import argparse
import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from testtime.data import ImageSet, cifar10, embedded
from testtime.data.augmix import augmix, jsd_loss
from testtime.models import build_model, load_model
from testtime.models.zoo import PACKAGED

DIGITS_OUT = PACKAGED / "digits_cnn.safetensors"
DIGITS_EPOCHS = 40
DIGITS_SEED = 0


def derived(seed: int, *counters: int) -> torch.Generator:
    """Return a generator for one step of one purpose: the same for the same numbers, whenever it is asked
    for."""
    mixed = seed
    for counter in counters:
        mixed = (mixed * 1_000_003 + counter + 1) % 2**63
    return torch.Generator().manual_seed(mixed)


def cropped(images: Tensor, padding: int, generator: torch.Generator, flip: bool) -> Tensor:
    """Shift each image by up to `padding` pixels, black entering, and mirror half of them."""
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


def write(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def train_digits(out: Path) -> None:
    """Train the digits network on the train half of the embedded default, and say how it does on the
    other."""
    torch.manual_seed(DIGITS_SEED)
    sets = embedded()
    x, y = pixels(sets.train)
    test_x, test_y = sets.test.batch(range(len(sets.test))), sets.test.targets(range(len(sets.test)))
    model = build_model("digits-cnn")
    steps = DIGITS_EPOCHS * math.ceil(len(x) / 64)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps, pct_start=0.2)
    begin = time.monotonic()
    for epoch in range(DIGITS_EPOCHS):
        model.train()
        order = torch.randperm(len(x), generator=derived(DIGITS_SEED, epoch))
        for step, rows in enumerate(order.split(64)):
            images = cropped(x[rows], 3, derived(DIGITS_SEED, epoch, step), flip=False).float() / 255
            loss = F.cross_entropy(model(images), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        elapsed = time.monotonic() - begin
        print(f"epoch {epoch + 1}/{DIGITS_EPOCHS}  loss {loss.item():.3f}  {elapsed:.0f} s", flush=True)
    write({k: v for k, v in model.model.state_dict().items() if not k.endswith("num_batches_tracked")}, out)
    noise = torch.randn(test_x[:, :1].shape, generator=derived(DIGITS_SEED, 1, 1))
    corrupted = {
        "clean": test_x,
        "noise 0.38": (test_x + 0.38 * noise).clamp(0, 1),
        "contrast 0.05": (test_x - test_x.mean((2, 3), True)) * 0.05 + test_x.mean((2, 3), True),
    }
    for name, images in corrupted.items():
        print(f"{name}: {accuracy(model, images, test_y):.2f} %")


@dataclass(frozen=True)
class Settings:
    """What decides a training run; a run is only continued with the same."""

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
    """Return the cosine from lr to 1e-6."""
    return 1e-6 + (settings.lr - 1e-6) * 0.5 * (1 + math.cos(math.pi * step / steps))


class Run:
    """A training run: model, optimizer, the epochs done, and how to save and continue them."""

    def __init__(self, settings: Settings, device: torch.device) -> None:
        torch.manual_seed(settings.seed)
        self.settings = settings
        self.device = device
        self.model = (
            load_model(settings.model, settings.start) if settings.start else build_model(settings.model)
        )
        self.model = self.model.to(device).to(memory_format=torch.channels_last)
        self.epoch = 0
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            settings.lr,
            momentum=0.9,
            weight_decay=settings.weight_decay,
            nesterov=True,
        )

    def step(self, images: Tensor, labels: Tensor, counter: int, rate: float) -> Tensor:
        """Take one step on uint8 images and return its loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        seed = self.settings.seed
        clean = cropped(images, 4, derived(seed, 0, counter), flip=True)
        first, second = (augmix(clean, derived(seed, view, counter)) for view in (1, 2))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.amp):
            logits = self.model(torch.cat([clean.float() / 255, first, second]))
        clean_view, first_view, second_view = logits.chunk(3)
        loss = jsd_loss(clean_view, first_view, second_view, labels, self.settings.jsd)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def save(self, path: Path) -> None:
        """Write the state of the run."""
        tensors = {f"model.{k}": v for k, v in self.model.model.state_dict().items()}
        for name, parameter in self.model.model.named_parameters():
            tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        write(tensors, path, {"run": json.dumps({"epoch": self.epoch, "settings": asdict(self.settings)})})

    def resume(self, path: Path) -> None:
        """Continue from a saved state; raise SystemExit where it is of other settings."""
        with safe_open(path, "pt", device=str(self.device)) as file:
            run = json.loads(file.metadata()["run"])
            if run["settings"] != asdict(self.settings):
                raise SystemExit(f"{path}: made with {run['settings']}; repeat these or choose another --out")
            state = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 - not a dict
        self.model.model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        for name, parameter in self.model.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = state[f"momentum.{name}"]
        self.epoch = run["epoch"]


def train_augmix(options: argparse.Namespace) -> None:
    """Train with AugMix, from the last saved epoch on."""
    device = torch.device(options.device)
    x, y = (part.to(device) for part in pixels(cifar10(options.data, "train", complete=False)))
    test_x, test_y = (part.to(device) for part in pixels(cifar10(options.data, "test", complete=False)))
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
        len(x),
    )
    run = Run(settings, device)
    state = options.out.with_suffix(".state.safetensors")
    if state.is_file():
        run.resume(state)
        print(f"continuing after epoch {run.epoch} of {settings.epochs}, from {state}")
    per_epoch = len(x) // settings.batch
    if per_epoch == 0:
        raise SystemExit(f"{len(x)} training images are fewer than --batch {settings.batch}")
    steps = settings.epochs * per_epoch
    start, begin = run.epoch * per_epoch, time.monotonic()
    last = min(steps, start + options.max_steps) if options.max_steps else steps
    while run.epoch < settings.epochs:
        run.model.train()
        order = torch.randperm(len(x), generator=derived(settings.seed, 3, run.epoch)).to(device)
        total = torch.zeros((), device=device)
        for at in range(per_epoch):
            counter = run.epoch * per_epoch + at
            if counter >= last:
                break
            rows = order[at * settings.batch : (at + 1) * settings.batch]
            total += run.step(x[rows], y[rows], counter, learning_rate(settings, counter, steps))
            if (counter + 1) % options.every == 0 or counter + 1 == last:
                rate = (counter + 1 - start) / (time.monotonic() - begin)
                speed, left = rate * settings.batch, (last - counter - 1) / rate / 60
                mean = total.item() / (at + 1)
                print(
                    f"step {counter + 1}/{steps}  loss {mean:.3f}  {speed:.0f} img/s  {left:.1f} min left",
                    flush=True,
                )
        if counter >= last:
            break
        run.epoch += 1
        run.save(state)
        print(
            f"epoch {run.epoch}/{settings.epochs}  test accuracy {accuracy(run.model, test_x, test_y):.2f} %"
        )
    write(run.model.model.state_dict(), options.out)
    print(f"{options.out}: load_model({options.model!r}, path)")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(dest="command", required=True)
    digits = commands.add_parser("digits", help="the packaged network of the embedded default")
    digits.add_argument("--out", type=Path, default=DIGITS_OUT)
    wide = commands.add_parser("augmix", help="a network with AugMix on CIFAR-10")
    wide.add_argument(
        "--model", default="cifar10-wrn40-2-augmix", help="a CIFAR-10 network of testtime.models"
    )
    wide.add_argument("--start", type=Path, help="weights to go on from; none begins anew")
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
    wide.add_argument("--every", type=int, default=50, help="steps between two lines of progress")
    return top


def main() -> None:
    """Run the command line."""
    options = parser().parse_args()
    if options.command == "digits":
        train_digits(options.out)
    else:
        train_augmix(options)


if __name__ == "__main__":
    main()
