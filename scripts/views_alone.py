"""What CoTTA's views are worth without its learning: the field's streams at a learning rate of zero.

    python scripts/views_alone.py --data .data continual mixed correlated

The images are those that ``testtime run field-STREAM --rows CoTTA`` shows (200 of each corruption, seed 0), in bfloat16.
"""

from __future__ import annotations

import argparse

import torch

from testtime.experiments import Request
from testtime.experiments.online.experiment import online
from testtime.experiments.online.stream import make_stream, source_model
from testtime.methods import CoTTA
from testtime.parts import adam
from testtime.progress import progress


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("streams", nargs="+", help="continual, mixed, correlated, ...")
    parser.add_argument("--data", default=".data", help="folder of data sets and weights (.data)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.streams:
        field, request = online(f"field-{name}"), Request(f"field-{name}", data=given.data)
        inputs, parameters = field.first_column(request, field.places(request))
        stream = make_stream(parameters, inputs.places, parameters["slow_limit"])
        model = source_model(inputs.model, inputs.places).model
        cotta = CoTTA(model.to(memory_format=torch.channels_last), adam(0.0))
        wrong = 0
        with torch.autocast("cpu", torch.bfloat16):
            for batch in progress(stream, len(stream), name):
                answer = cotta(batch.x.to(memory_format=torch.channels_last)).argmax(dim=1)
                wrong += int((answer != batch.y).sum())
        print(f"{name}: error {100 * wrong / stream.images:.1f} %")


if __name__ == "__main__":
    main()
