"""Which method for a stream without labels: candidates run in shadow, and one is named with its reasons.

python examples/choose_without_labels.py
"""

import torch

from testtime.data import embedded
from testtime.methods import BNAdapt, Source, Tent
from testtime.models import load_model
from testtime.parts import adam
from testtime.selection import appearance_features, monitor, recommend
from testtime.streams import continual


def main() -> None:
    """Watch four candidates on a stream of digits and print the advice."""
    model = load_model("digits-cnn")  # or any nn.Module that ends in a linear head
    candidates = {
        "Source": Source(model),  # what is in use comes first
        "BN-adapt": BNAdapt(model),
        "TENT": Tent(model),
        "TENT, far too fast": Tent(model, adam(0.5)),
    }
    stream = continual(embedded().test, ["fog", "contrast", "gaussian_noise"], batch_size=100, limit=200)
    images = [batch.x for batch in stream]  # the labels stay behind
    # The model declares that a mirrored digit is another class: its images are turned a little instead.
    seen = {name: list(monitor(adapter, images, Source(model))) for name, adapter in candidates.items()}
    advice = recommend(seen, appearance_features(torch.cat(images)))
    for candidate in advice.candidates:
        print(
            f"{candidate.name:20} {candidate.accuracy:5.1f} % estimated, diversity {candidate.diversity:5.1f} %"
        )
    print(f"take {advice.name}")
    for reason in advice.reasons:
        print(f"- {reason}")


if __name__ == "__main__":
    main()
