"""Sentences from a DataLoader with workers: dictionaries of token ids and masks, batch by batch."""

import torch
from torch import nn
from torch.utils.data import DataLoader

from testtime.methods import Tent


def sentence(i: int) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(i)
    mask = (torch.arange(12) < torch.randint(4, 13, (1,), generator=rng)).long()
    return {"input_ids": torch.randint(100, (12,), generator=rng) * mask, "attention_mask": mask}


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm, self.head = nn.Embedding(100, 32), nn.LayerNorm(32), nn.Linear(32, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        shown = attention_mask[..., None]
        return self.head(self.norm((self.words(input_ids) * shown).sum(1) / shown.sum(1)))


adapter = Tent(Classifier())
for batch in DataLoader([sentence(i) for i in range(64)], batch_size=16, num_workers=2):
    y = adapter(batch)  # no labels in the dictionary
print(f"{int(adapter.clock)} batches, updated: {y.updated}, logits {tuple(y.shape)}")
