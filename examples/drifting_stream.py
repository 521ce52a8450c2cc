"""A stream that drifts and holds unknown images: predict, refuse, adapt, save, go on.

python examples/drifting_stream.py          # needs the extra: pip install -e '.[demo]'
"""

import tempfile

import testtime
from testtime.data import embedded
from testtime.metrics import accuracy, auroc
from testtime.models import load_model
from testtime.streams import continual, open_set


def main() -> None:
    """Adapt to three corruptions, with a restart in between."""
    sets = embedded()
    model = load_model("digits-cnn")
    stream = open_set(
        continual(sets.test, ("gaussian_noise", "motion_blur", "pixelate"), batch_size=100, limit=300),
        sets.unknown,
    )
    adapter = testtime.adapt(model, "unient+", classes=10)
    with tempfile.TemporaryDirectory() as folder:
        for batch in stream:
            y = adapter(batch.x)
            known = batch.y >= 0
            right = accuracy((y.argmax(1) == batch.y)[known].numpy())
            area = auroc(y.score[known].numpy(), y.score[~known].numpy())
            print(f"{batch.domain:12} batch {batch.index:2}  accuracy {right:5.1f} %  AUROC {area:5.1f} %")
            testtime.save(adapter, folder)  # a crash costs nothing:
            adapter = testtime.load(folder, model)  # this is where the next process would go on


if __name__ == "__main__":
    main()
