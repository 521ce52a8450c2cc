"""The protocols by name: the tables and sweeps of the papers, and ours on data that is at hand."""

from __future__ import annotations

from testtime.bench.protocol import Column, Protocol, Row

__all__ = ["PROTOCOLS", "protocol"]

SOURCE = Row("Source", "Source")
METHODS = (
    SOURCE,
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
NEAR_AND_FAR = (
    Column("CIFAR-100", "cifar100"),
    Column("Tiny ImageNet", "tiny-imagenet"),
    Column("Textures", "textures"),
)

_ALL = (
    Protocol(
        "cifar10-open",
        "CIFAR-10-C with unknown images among the known, near and far",
        "cifar10",
        "cifar10-resnet20",
        METHODS,
        NEAR_AND_FAR,
        limit=1000,
        slow_limit=250,
        seeds=(0, 1, 2),
        note="ResNet-20 without augmentation beyond crop and flip.",
    ),
    Protocol(
        "digits-open",
        "Handwritten digits, corrupted, with photograph patches among them",
        "digits",
        "digits-cnn",
        METHODS,
        (Column("Photographs", "photographs", 100),),
        limit=500,
        slow_limit=150,
    ),
)

PROTOCOLS: dict[str, Protocol] = {one.name: one for one in _ALL}


def protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        ValueError: there is none; the message lists them.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; choose one of: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
