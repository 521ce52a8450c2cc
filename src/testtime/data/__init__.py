"""Readers of public data sets, and the embedded default. Every reader returns an `ImageSet` or a `DenseSet`."""

from testtime.data.cameras import Camera
from testtime.data.camvid import CAMVID11, camvid
from testtime.data.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, cifar10, cifar100, cifar_c
from testtime.data.dense import IGNORE, DenseSet, Sample, collate, sized
from testtime.data.download import download, sha256_of
from testtime.data.embedded import Embedded, embedded
from testtime.data.fileset import FileSet
from testtime.data.folders import (
    PACS_DOMAINS,
    image_folder,
    imagenet,
    imagenet_c,
    imagenet_names,
    imagenet_wnids,
    omniglot,
    pacs,
    places365,
    textures,
    tiny_imagenet,
)
from testtime.data.grey import fashion_mnist, mnist, notmnist, read_idx, usps
from testtime.data.imageset import Crop, ImageSet, from_arrays, resized
from testtime.data.nyud import NYUD13, NYUD40, nyud, nyud_layout
from testtime.data.pascal_context import VOC21, pascal_context
from testtime.data.pickled import read_pickled
from testtime.data.procthor import AgentEvent, dump_event, procthor, procthor_houses, procthor_records
from testtime.data.replica import replica
from testtime.data.scannetpp import (
    DslrFrame,
    iphone_depth,
    scannetpp_cameras,
    scannetpp_dslr,
    scannetpp_frames,
    scannetpp_iphone,
    scannetpp_scenes,
    unpack_iphone_depth,
)
from testtime.data.seven_scenes import seven_scenes
from testtime.data.shared_classes import (
    TASKONOMY_NYUD,
    TASKONOMY_NYUD_CLASSES,
    TASKONOMY_PASCAL,
    TASKONOMY_PASCAL_CLASSES,
    relabelled,
)
from testtime.data.svhn import svhn
from testtime.data.taskonomy import FORBIDDEN_BUILDINGS, TASKONOMY17, taskonomy

__all__ = [
    "CAMVID11",
    "CIFAR10_CLASSES",
    "CIFAR100_CLASSES",
    "FORBIDDEN_BUILDINGS",
    "IGNORE",
    "NYUD13",
    "NYUD40",
    "PACS_DOMAINS",
    "TASKONOMY17",
    "TASKONOMY_NYUD",
    "TASKONOMY_NYUD_CLASSES",
    "TASKONOMY_PASCAL",
    "TASKONOMY_PASCAL_CLASSES",
    "VOC21",
    "AgentEvent",
    "Camera",
    "Crop",
    "DenseSet",
    "DslrFrame",
    "Embedded",
    "FileSet",
    "ImageSet",
    "Sample",
    "camvid",
    "cifar10",
    "cifar100",
    "cifar_c",
    "collate",
    "download",
    "dump_event",
    "embedded",
    "fashion_mnist",
    "from_arrays",
    "image_folder",
    "imagenet",
    "imagenet_c",
    "imagenet_names",
    "imagenet_wnids",
    "iphone_depth",
    "mnist",
    "notmnist",
    "nyud",
    "nyud_layout",
    "omniglot",
    "pacs",
    "pascal_context",
    "places365",
    "procthor",
    "procthor_houses",
    "procthor_records",
    "read_idx",
    "read_pickled",
    "relabelled",
    "replica",
    "resized",
    "scannetpp_cameras",
    "scannetpp_dslr",
    "scannetpp_frames",
    "scannetpp_iphone",
    "scannetpp_scenes",
    "seven_scenes",
    "sha256_of",
    "sized",
    "svhn",
    "taskonomy",
    "textures",
    "tiny_imagenet",
    "unpack_iphone_depth",
    "usps",
]
