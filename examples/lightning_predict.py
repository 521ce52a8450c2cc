"""Trainer.predict of Lightning with an adapter inside: gradients are off there, and the adapter learns all the same."""

import pytorch_lightning as lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

from testtime.methods import Tent


class Predicts(lightning.LightningModule):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.adapter = Tent(model)  # its entries of a checkpoint are what moves

    def predict_step(self, batch: torch.Tensor) -> torch.Tensor:
        return self.adapter(batch).argmax(dim=1)


body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
module = Predicts(nn.Sequential(body, nn.Flatten(), nn.Linear(8, 4)))
images = torch.rand(48, 3, 16, 16, generator=torch.Generator().manual_seed(0))
quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
trainer = lightning.Trainer(accelerator="cpu", **quiet)
classes = torch.cat(trainer.predict(module, DataLoader(images, batch_size=16)))
print(f"{len(classes)} predictions, {int(module.adapter.clock)} batches learned")
