"""The protocols by name: the tables and sweeps of the papers, and ours on data that is at hand.

The paper's are those of PAF + KIP (Lee, Lee and Lee, BMVC 2025): 15 domains of severity 5, one after the
other, without a reset; batches of 200 of which half are unknown; WideResNet-40-2 trained with AugMix. Where
the text leaves the values of a sweep to a figure, the values are ours and no figures stand beside them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from testtime.bench import published
from testtime.bench.protocol import Column, Protocol, Row
from testtime.errors import unknown_name
from testtime.norm import alpha_statistics, ema_statistics, iabn, unmix_tns
from testtime.parts import adam, sgd

__all__ = ["PROTOCOLS", "protocol"]

PAPER = "PAF + KIP, BMVC 2025"

METHODS = (
    Row("Source", "Source"),
    Row("BN-adapt", "BNAdapt"),
    Row("TENT", "Tent"),
    Row("CoTTA", "CoTTA"),
    Row("ETA", "ETA"),
    Row("EATA", "EATA"),
    Row("RoTTA", "RoTTA"),
    Row("SoTTA", "SoTTA"),
    Row("OSTTA", "OSTTA"),
    Row("STAMP", "STAMP"),
    Row("UniEnt", "UniEnt"),
    Row("UniEnt+", "UniEntPlus"),
    Row("PAF+KIP", "PAFKIP"),
)


# What each method's paper or code sets for a data set where its default, CIFAR-10's, is another.
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "digits": {"EATA": {"fisher_alpha": 1.0}},
    "cifar10": {
        "EATA": {"fisher_alpha": 1.0},
        # Published for ImageNet alone; on CIFAR these take the rate of the others.
        **{name: {"optimizer": adam(1e-3)} for name in ("RPL", "SAR", "DeYO")},
    },
    "cifar100": {
        "ETA": {"d_margin": 0.1},
        "EATA": {"d_margin": 0.1, "fisher_alpha": 1.0},
        "CoTTA": {"threshold": 0.72},
        "SoTTA": {"threshold": 0.66},
        "STAMP": {"alpha": 0.9, "optimizer": sgd(0.05)},
    },
    "imagenet": {
        "Tent": {"optimizer": sgd(2.5e-4)},
        "ETA": {"d_margin": 0.05, "optimizer": sgd(2.5e-4)},
        "EATA": {"d_margin": 0.05, "fisher_alpha": 2000.0, "optimizer": sgd(2.5e-4)},
        "CoTTA": {"threshold": 0.1, "restoration": 0.001, "optimizer": sgd(2.5e-4)},
        "RoTTA": {"optimizer": sgd(2.5e-4)},
        "SoTTA": {"threshold": 0.33},
        "OSTTA": {"optimizer": sgd(2.5e-4)},
        "STAMP": {"alpha": 0.8, "optimizer": sgd(0.01), "consistent": False, "period": 750},
        "UniEnt": {"optimizer": sgd(2.5e-4)},
        "UniEntPlus": {"optimizer": sgd(2.5e-4)},
        "PAFKIP": {"alpha": 0.7, "optimizer": sgd(2.5e-4)},
    },
}


def _set_for(closed: str, rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """The rows with the settings for a closed set; what a row says itself stays."""
    return tuple(
        replace(row, arguments={**SETTINGS[closed].get(row.method, {}), **row.arguments}) for row in rows
    )


MEMORY_FREE = tuple(row for row in METHODS if row.label not in ("RoTTA", "SoTTA", "STAMP"))
TIMED = tuple(row for row in METHODS if row.label in ("Source", *published.LATENCY))

# Table 4 and figure 1: one filter alone decides (eq. 3: the adapting model, eq. 5: its average).
ALONE = {"minimise": "none", "maximise": "none", "models": ("adapting",)}
ABLATION = (
    Row("no filter", "Tent"),
    Row("primary", "PAFKIP", {**ALONE, "primary": "adapting"}),
    Row("auxiliary", "PAFKIP", {**ALONE, "primary": "ema"}),
    Row("PAF", "PAFKIP", {"models": ("adapting",)}),
    Row("PAF+KIP", "PAFKIP"),
)
SOFT_HARD = tuple(
    Row(f"min {down}, max {up}", "PAFKIP", {"minimise": down, "maximise": up})
    for down in ("soft", "hard")
    for up in ("soft", "hard")
)
FILTERS = (
    Row("UniEnt", "UniEnt"),
    Row("adapting", "PAFKIP", {**ALONE, "primary": "adapting", "alpha": 1.0}),
    Row("EMA", "PAFKIP", {**ALONE, "primary": "ema", "alpha": 1.0}),
    Row("PAF+KIP", "PAFKIP"),
)
SINGLE = (
    Row("source", "PAFKIP", {"models": ("source",)}),
    Row("adapting", "PAFKIP", {"models": ("adapting",)}),
    Row("EMA", "PAFKIP", {"models": ("ema",)}),
    Row("KIP", "PAFKIP"),
)


def _sweep(argument: str, values: tuple[float, ...]) -> tuple[Row, ...]:
    return tuple(Row(f"{argument}={value:g}", "PAFKIP", {argument: value}) for value in values)


OPEN = {"SVHN": "svhn", "Tiny ImageNet": "tiny-imagenet", "Places365": "places365", "Textures": "textures"}
ALL_OPEN = tuple(Column(name, key) for name, key in OPEN.items())
SVHN, TEXTURES = ALL_OPEN[0], ALL_OPEN[3]
BATCH_SIZES = tuple(Column(name, "svhn", int(name)) for name in published.BATCH_SIZES)
RATIOS = tuple(Column(name, "svhn", 200, float(name)) for name in published.RATIOS)

_CIFAR10 = Protocol(
    "paper-table-1",
    "CIFAR-10-C with four open sets",
    "cifar10",
    "cifar10-wrn40-2-augmix",
    _set_for("cifar10", METHODS),
    ALL_OPEN,
    published=published.CIFAR10,
    source=f"{PAPER}, table 1",
)
_CIFAR100 = replace(
    _CIFAR10,
    name="paper-table-2",
    title="CIFAR-100-C with four open sets",
    closed="cifar100",
    model="cifar100-wrn40-2-augmix",
    rows=_set_for("cifar100", METHODS),
    published=published.CIFAR100,
    source=f"{PAPER}, table 2",
)


_IMAGENET = Protocol(
    "paper-table-3",
    "ImageNet-C with two open sets",
    "imagenet",
    "imagenet-resnet50",
    _set_for("imagenet", METHODS),
    (Column("Places365", "places365", 64), Column("Textures", "textures", 64)),
    published=published.IMAGENET,
    source=f"{PAPER}, table 3",
    note="The paper's ResNet-50 is trained with AugMix: weights/imagenet_resnet50.safetensors is to be that.",
)

_OURS = Protocol(
    "cifar10-open",
    "CIFAR-10-C with unknown images among the known, near and far",
    "cifar10",
    "cifar10-resnet20-augmix",
    _set_for("cifar10", METHODS),
    (
        Column("CIFAR-100", "cifar100"),
        Column(
            "Tiny ImageNet",
            "tiny-imagenet",
            note="Tiny ImageNet holds cats, dogs, cars and ships, which CIFAR-10 knows.",
        ),
        Column("Textures", "textures"),
    ),
    limit=1000,
    slow_limit=250,
    seeds=(0, 1, 2),
    published={
        row: {name: figures for name, figures in by.items() if name in ("Tiny ImageNet", "Textures")}
        for row, by in published.CIFAR10.items()
    },
    source=f"{PAPER}, table 1, of a WideResNet-40-2 trained with AugMix on 10,000 images of each domain: compare the "
    "order and the gaps, not the values",
    note="Ours: a public ResNet-20 trained on with AugMix.",
)

_ALL = (
    _OURS,
    replace(
        _OURS,
        name="cifar10-open-plain",
        title="The same, with a source model that was trained without AugMix",
        model="cifar10-resnet20",
        published={},
        source="",
        note="Ours: a public ResNet-20.",
    ),
    replace(
        _OURS,
        name="cifar10-ablation",
        title="What each piece of PAF + KIP does, on CIFAR-10-C with textures",
        rows=ABLATION,
        columns=(Column("Textures", "textures"),),
        published={},
        source="",
    ),
    replace(
        _OURS,
        name="cifar10-soft-hard",
        title="Soft and hard filtering, on CIFAR-10-C with textures",
        rows=SOFT_HARD,
        columns=(Column("Textures", "textures"),),
        published={},
        source="",
    ),
    replace(
        _OURS,
        name="cifar10-batch-size",
        title="Smaller batches, on CIFAR-10-C with textures",
        rows=_set_for("cifar10", MEMORY_FREE),
        columns=tuple(Column(str(size), "textures", size) for size in (50, 100, 200)),
        published={},
        source="",
    ),
    Protocol(
        "digits-open",
        "Handwritten digits under 15 corruptions, with photograph patches among them",
        "digits",
        "digits-cnn",
        _set_for("digits", METHODS),
        (Column("Photographs", "photographs", 100),),
        limit=250,
        slow_limit=100,
        note="The embedded default: 8x8 digits enlarged to 32x32, a network of 24 thousand parameters. A mirrored "
        "digit is another class: no method's views are flipped, as the model declares.",
    ),
    _CIFAR10,
    _CIFAR100,
    _IMAGENET,
    replace(
        _CIFAR100,
        name="paper-table-4",
        title="Ablation of the filters and of the integrated prediction",
        rows=ABLATION,
        columns=(SVHN,),
        published=published.ABLATION,
        source=f"{PAPER}, table 4",
    ),
    replace(
        _CIFAR100,
        name="paper-table-5a",
        title="Soft and hard filtering, CIFAR-100-C",
        rows=SOFT_HARD,
        columns=(SVHN,),
        published=published.SOFT_HARD_CIFAR100,
        source=f"{PAPER}, table 5a",
    ),
    replace(
        _IMAGENET,
        name="paper-table-5b",
        title="Soft and hard filtering, ImageNet-C",
        rows=_set_for("imagenet", SOFT_HARD),
        columns=(Column("Textures", "textures", 64),),
        published=published.SOFT_HARD_IMAGENET,
        source=f"{PAPER}, table 5b",
    ),
    replace(
        _CIFAR100,
        name="paper-table-6",
        title="Time for each batch",
        rows=_set_for("cifar100", TIMED),
        columns=(SVHN,),
        published={row.label: published.CIFAR100[row.label] for row in TIMED},
        latency=published.LATENCY,
        source=f"{PAPER}, table 6",
    ),
    replace(
        _CIFAR10,
        name="paper-table-7a",
        title="Smaller batches, CIFAR-10-C",
        rows=_set_for("cifar10", MEMORY_FREE),
        columns=BATCH_SIZES,
        published=published.BATCH_SIZE_CIFAR10,
        source=f"{PAPER}, table 7",
    ),
    replace(
        _CIFAR100,
        name="paper-table-7b",
        title="Smaller batches, CIFAR-100-C",
        rows=_set_for("cifar100", MEMORY_FREE),
        columns=BATCH_SIZES,
        published=published.BATCH_SIZE_CIFAR100,
        source=f"{PAPER}, table 7",
    ),
    replace(
        _CIFAR10,
        name="paper-table-8a",
        title="More and fewer unknown images, CIFAR-10-C",
        columns=RATIOS,
        published=published.RATIO_CIFAR10,
        source=f"{PAPER}, table 8",
    ),
    replace(
        _CIFAR100,
        name="paper-table-8b",
        title="More and fewer unknown images, CIFAR-100-C",
        columns=RATIOS,
        published=published.RATIO_CIFAR100,
        source=f"{PAPER}, table 8",
    ),
    replace(
        _CIFAR100,
        name="paper-figure-1",
        title="Known images that were wrongly maximised, by filter",
        rows=_set_for("cifar100", FILTERS),
        columns=(TEXTURES,),
        published={},
        source=f"{PAPER}, figure 1",
    ),
    replace(
        _IMAGENET,
        name="paper-figure-2",
        title="The integrated prediction against each of its models",
        rows=_set_for("imagenet", SINGLE),
        columns=(Column("Textures", "textures", 64),),
        published={},
        source=f"{PAPER}, figure 2",
    ),
    replace(
        _CIFAR10,
        name="paper-figure-3",
        title="Weight of the maximisation, alpha",
        rows=_sweep("alpha", (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)),
        columns=(SVHN,),
        published={},
        source=f"{PAPER}, figure 3",
    ),
    replace(
        _CIFAR10,
        name="paper-figure-4",
        title="Entropy threshold, tau as a fraction of log C",
        rows=_sweep("margin", (0.2, 0.3, 0.4, 0.5, 0.6)),
        columns=(SVHN,),
        published={},
        source=f"{PAPER}, figure 4",
    ),
    replace(
        _CIFAR100,
        name="paper-figure-5",
        title="Sharpness of the integration, gamma",
        rows=_sweep("gamma", (0.0, 0.05, 0.1, 0.2, 0.3)),
        columns=(TEXTURES,),
        published={},
        source=f"{PAPER}, figure 5",
    ),
    replace(
        _CIFAR100,
        name="paper-figure-6",
        title="Sixty domains: the mean of the logits against the integrated prediction",
        rows=_sweep("gamma", (0.0, 0.1)),
        columns=(TEXTURES,),
        rounds=4,
        published={},
        source=f"{PAPER}, figure 6",
        note="The paper does not name the data of figure 6; these are those of figure 5.",
    ),
    replace(
        _CIFAR100,
        name="paper-figure-7",
        title="Decay of the average, beta",
        rows=_sweep("decay", (0.9, 0.99, 0.999, 0.9999)),
        columns=(SVHN,),
        published={},
        source=f"{PAPER}, figure 7",
    ),
)

# The field: every method that a pre-trained network and unlabelled images of its source suffice for.
FIELD = (
    *METHODS,
    Row("alpha-BN", "BNAdapt", {"norm": alpha_statistics}),
    Row("EMA-BN", "BNAdapt", {"norm": ema_statistics}),
    Row("IABN", "BNAdapt", {"norm": iabn}),
    Row("UnMix-TNS", "BNAdapt", {"norm": unmix_tns}),
    Row("PL", "PL"),
    Row("RPL", "RPL"),
    Row("SHOT-IM", "SHOTIM"),
    Row("SAR", "SAR"),
    Row("DeYO", "DeYO"),
    Row("ROID", "ROID"),
    Row("CMF", "CMF"),
    Row("SANTA", "SANTA"),
    Row("Core", "Core"),
    Row("CAFA", "CAFA"),
    Row("NOTE", "NOTE"),
    Row("LAME", "LAME"),
    Row("T3A", "T3A"),
    Row("AdaNPC", "AdaNPC"),
    Row("RMT", "RMT"),
    Row("PETAL", "PETAL"),
    Row("AdaContrast", "AdaContrast"),
    Row("VDP", "VDP"),
    Row("ViDA", "ViDA"),
    Row("EcoTTA", "EcoTTA"),
    Row("NHL", "NHL"),
    Row("ITTA", "ITTA"),
    Row("Meta-DMoE", "MetaDMoE"),
    Row("aTLAS", "ATLAS"),
    Row("TIPI", "TIPI"),
    Row("ActMAD", "ActMAD"),
    Row("MEMO", "MEMO"),
    Row("RDumb", "ETA", reset_every=1000),
)
# Candidates for a stream without labels: quick ones, and two that destroy themselves.
CHOOSING = (
    "Source",
    "BN-adapt",
    "TENT",
    "ETA",
    "EATA",
    "RoTTA",
    "SoTTA",
    "UniEnt",
    "PAF+KIP",
    "PL",
    "SHOT-IM",
    "SAR",
    "DeYO",
    "ROID",
    "NOTE",
    "LAME",
    "T3A",
)
UNMIXED = ("BN-adapt", "TENT", "PL", "SHOT-IM", "ETA", "EATA", "SAR", "DeYO", "ROID", "PAF+KIP")

_FIELD = Protocol(
    "field-continual",
    "Every method, one domain after the other",
    "cifar10",
    "cifar10-resnet20",
    _set_for("cifar10", FIELD),
    (Column("closed set", None), Column("CIFAR-100 among them", "cifar100")),
    limit=500,
    slow_limit=200,
    note="Ours: a public ResNet-20.",
)
# A spell lasts some 50 images: batches of 200 would hold four of them, and nothing is hard about that.
IN_SPELLS = tuple(replace(column, batch_size=64) for column in _FIELD.columns)
_STREAMS = (
    _FIELD,
    replace(_FIELD, name="field-reset", title="Every method, reset before each domain", reset=True),
    replace(
        _FIELD,
        name="field-gradual",
        title="Every method, corruptions come and go",
        order="gradual",
        limit=100,
    ),
    replace(_FIELD, name="field-mixed", title="Every method, all domains shuffled into one", order="mixed"),
    replace(
        _FIELD,
        name="field-correlated",
        title="Every method, classes in spells",
        order="correlated",
        columns=IN_SPELLS,
    ),
    replace(
        _FIELD,
        name="field-mixed-correlated",
        title="Every method, domains mixed and classes in spells",
        order="mixed-correlated",
        columns=IN_SPELLS,
    ),
    replace(
        _FIELD, name="field-label-shift", title="Every method, each class has its time", order="label-shift"
    ),
    replace(
        _FIELD,
        name="field-single",
        title="Every method, one image at a time",
        columns=(Column("closed set", None, 1),),
        limit=50,
        slow_limit=20,
    ),
    replace(
        _FIELD, name="field-long", title="Every method, sixty domains", rounds=4, limit=125, slow_limit=50
    ),
    replace(
        _FIELD, name="field-forgetting", title="Every method, and the clean images at last", returns=True
    ),
    replace(
        _FIELD,
        name="field-wandering",
        title="Every method, two corruptions blended and never at rest",
        order="wandering",
        target=0.5,
        pace=50,
        columns=(Column("closed set", None),),
    ),
    replace(
        _FIELD,
        name="field-timed",
        title="Every method, on a stream that is as fast as the source model",
        speed=1.0,
        columns=(Column("closed set", None),),
    ),
    replace(
        _FIELD,
        name="field-choosing",
        title="Candidates for a stream without labels, and two of too high a rate",
        rows=(
            *(row for row in _set_for("cifar10", FIELD) if row.label in CHOOSING),
            Row("TENT, rate 0.03", "Tent", {"optimizer": adam(0.03)}),
            Row("PL, rate 0.03", "PL", {"optimizer": adam(0.03)}),
        ),
        columns=(Column("closed set", None, 100),),
        limit=100,
    ),
    replace(
        _FIELD,
        name="field-unmixed",
        title="Un-mixed statistics under ten methods, classes in spells",
        order="correlated",
        rows=tuple(
            one
            for row in _set_for("cifar10", FIELD)
            if row.label in UNMIXED
            for one in (
                row,
                replace(
                    row,
                    label=f"{row.label} + UnMix-TNS",
                    # The rate is that of its paper beneath other methods.
                    arguments={
                        **row.arguments,
                        "norm": unmix_tns,
                        **({"optimizer": adam(1e-5)} if row.label != "BN-adapt" else {}),
                    },
                ),
            )
        ),
        columns=(Column("closed set", None, 64),),
    ),
)

PROTOCOLS: dict[str, Protocol] = {one.name: one for one in (*_ALL, *_STREAMS)}


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]
