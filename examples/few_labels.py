"""How good is it now? Sixty labels of an adapter's answers on a stream, and an interval for its accuracy."""

import torch

import testtime
from testtime.data import embedded
from testtime.metrics.control_variates import Round, estimate_mean
from testtime.metrics.few_labels import Predictions, draw_next, logit_signals
from testtime.models import load_model
from testtime.streams import continual

model = load_model("digits-cnn")
adapter = testtime.adapt(model, "tent")
stream = list(continual(embedded().test, ["fog", "contrast"], batch_size=50, limit=400))
logits = torch.cat([adapter(batch.x).logits for batch in stream]).detach().numpy()
shipped = torch.cat([model(batch.x).argmax(1) for batch in stream]).numpy().astype(str)
predictions = Predictions(logits.argmax(1).astype(str), logit_signals(logits), {"shipped": shipped})

rows, q = draw_next(predictions.chances, 60)  # a person labels these 60 of 800
labels = torch.cat([batch.y for batch in stream]).numpy()
right = (labels[rows] == logits[rows].argmax(1)).astype(float)
found = estimate_mean([Round(rows, right, q)], predictions.table)
print(f"{100 * found.mean:.1f} %, interval {100 * found.low:.1f} to {100 * found.high:.1f} %")
print(f"all 800 labels: {100 * (labels == logits.argmax(1)).mean():.1f} %")
