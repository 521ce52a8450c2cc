"""Sentiment learned on film reviews meets tweets: python examples/tweets.py FOLDER (with sst2 and tweeteval in it)."""

import sys
from pathlib import Path

import torch
from torch import nn

from testtime import adam
from testtime.methods import LAME, T3A, Source, Tent
from testtime.models.minilm import load_minilm
from testtime.wrap import PriorCorrected

torch.manual_seed(0)
folder, text, head = Path(sys.argv[1]), load_minilm(), nn.Linear(384, 2)


class Sentiment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text, self.head = text, head

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.text(self.text.embed(input_ids), input_ids))


reviews = [line.split("\t") for line in (folder / "sst2/train.tsv").read_text().splitlines()[:600]]
tokens = [text.tokenize([words for words, _ in reviews[i : i + 50]]) for i in range(0, 600, 50)]
with torch.no_grad():
    z, y = (
        torch.cat([text(text.embed(x), x) for x in tokens]),
        torch.tensor([int(label) for _, label in reviews]),
    )
fit = torch.optim.Adam(head.parameters(), 1e-2, weight_decay=1e-3)
for _ in range(200):
    fit.zero_grad()
    nn.functional.cross_entropy(head(z), y).backward()
    fit.step()

words = (folder / "tweeteval/test_text.txt").read_text().splitlines()
truth = (folder / "tweeteval/test_labels.txt").read_text().split()
tweets = [(t, int(label) // 2) for t, label in zip(words, truth, strict=True) if label != "1"][:256]
parts = [tweets[i : i + 32] for i in range(0, 256, 32)]
candidates = {
    "Source": Source,
    "prior": lambda m: PriorCorrected(Source(m)),
    "T3A": T3A,
    "LAME": LAME,
    "TENT": lambda m: Tent(m, optimizer=adam(1e-4)),
}
for name, make in candidates.items():
    adapter = make(Sentiment())
    found = [adapter({"input_ids": text.tokenize([t for t, _ in part])}).argmax(1) for part in parts]
    right = torch.cat(found) == torch.tensor([label for _, label in tweets])
    print(f"{name:7} {100 * float(right.float().mean()):.1f} % of {len(right)} tweets", flush=True)
