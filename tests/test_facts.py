"""The facts that methods declare are true: each method is built, or refused, as its needs say."""

import inspect
from typing import get_args

import pytest
import torch
from torch import nn

import testtime
from testtime import Adapter, Episodic, adam, methods
from testtime.catalogue import catalogue, text
from testtime.facts import NORM_KINDS, Need, norm_kinds
from testtime.forecasting import Forecaster, NLinear
from testtime.laws.worlds import TinyViT, zero_shot
from testtime.methods import METHODS, PAFKIP, Source, Tent
from testtime.models.assisted import Assisted
from testtime.models.multitask import MultiTaskNet
from testtime.models.synchronizer import Synchronizer
from testtime.space.mae import MaskedAutoencoder
from testtime.space.model import Size
from testtime.tasks import Depth, Segmentation

APART = {"forecaster", "image-text"}  # what methods of other families need
CLASSES = [cls for cls in map(methods.__getattr__, METHODS) if not APART & {*cls.needs}]
IMAGE_TEXT = [cls for cls in map(methods.__getattr__, METHODS) if "image-text" in cls.needs]
FORECASTING = [cls for cls in map(methods.__getattr__, METHODS) if "forecaster" in cls.needs]
NORMS = {
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm([4, 6, 6]),
}
every_method = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.name)


def multi_task(norm=None):
    tasks = {"semseg": Segmentation(("a", "b")), "depth": Depth()}
    heads = {name: nn.Conv2d(4, task.channels, 1) for name, task in tasks.items()}
    return MultiTaskNet(nn.Sequential(nn.Conv2d(3, 4, 3), norm or nn.BatchNorm2d(4)), heads, tasks)


def network(cls, norm):
    """The smallest network with a kind of normalisation, and with the branch that a method needs."""
    if cls is methods.FOA:
        return TinyViT()
    if cls is methods.S4T:
        net = multi_task(norm)
        return Assisted(net, Synchronizer(net.tasks, 4, 2, 8, 4, 8, 1, 1, 2))
    if cls is methods.TTTMAE:
        mae = MaskedAutoencoder(Size(1, 1, 8, 2), (8, 8), 4)
        rest = [nn.Flatten(), nn.Linear(32, 4 * 36), nn.Unflatten(1, (4, 6, 6)), norm]
        return Assisted(nn.Sequential(mae.encoder, *rest), mae)
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)]
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, *head)


def build(cls, model):
    takes = inspect.signature(cls).parameters
    return cls(model, **({"classes": 2} if "classes" in takes else {}))


ONE_TASK = {"classifier", "class logits"}


def builds(cls, model):
    try:
        build(cls, model)
    except ValueError:
        return False
    return True


@every_method
def test_names_are_those_of_the_table(cls):
    entry = METHODS[cls.__name__]
    assert (cls.name, cls.label) == (entry.name, entry.label)
    assert cls.__module__ == f"testtime.methods.{entry.module}"
    assert testtime.adapt(network(cls, nn.BatchNorm2d(4)), cls.name, **extra(cls)).__class__ is cls


def extra(cls):
    return {"classes": 2} if "classes" in inspect.signature(cls).parameters else {}


@every_method
def test_facts_are_of_the_vocabulary(cls):
    assert set(cls.needs) <= set(get_args(Need))
    assert len(set(cls.needs)) == len(cls.needs)
    assert bool(cls.paper) == bool(cls.venue) == (cls is not Source)
    assert not cls.code or cls.code.startswith("github.com/")


@every_method
def test_it_works_with_the_kinds_of_normalisation_that_it_declares(cls):
    if "transformer" in cls.needs:
        assert builds(cls, TinyViT())
        assert norm_kinds(cls.needs) == ("LayerNorm",)
        return
    built = [kind for kind, make in NORMS.items() if builds(cls, network(cls, make()))]
    assert tuple(built) == norm_kinds(cls.needs)


@every_method
def test_facts_of_the_class_are_those_of_the_default_arguments(cls):
    adapter = build(cls, network(cls, nn.BatchNorm2d(4)))
    branch = "branch" in cls.needs
    assert tuple(adapter.cost) == tuple(cls.cost) or branch
    assert (adapter.output, adapter.source) == (cls.output, cls.source)
    assert (adapter.stochastic, adapter.labelled_source) == (cls.stochastic, cls.labelled_source) or (
        cls is methods.TTT  # draws only where augment= is not the default
    )


@every_method
def test_it_refuses_networks_without_what_it_needs(cls):
    if {"branch", "transformer"} & {*cls.needs}:
        assert not builds(cls, network(Tent, nn.BatchNorm2d(4)))
        return
    no_norm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    assert builds(cls, no_norm) is not bool({"norm", "BatchNorm"} & {*cls.needs})
    no_head = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 6), nn.Flatten())
    assert builds(cls, no_head) is ("linear head" not in cls.needs)
    no_convolution = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
    )
    assert builds(cls, no_convolution) is ("convolution" not in cls.needs)
    assert builds(cls, multi_task()) is not bool(ONE_TASK & {*cls.needs})


@pytest.mark.parametrize("cls", FORECASTING, ids=lambda cls: cls.name)
def test_methods_of_forecasters_declare_what_is_true(cls):
    model = Forecaster(NLinear(4, 2), 4, 2, 3)
    test_facts_are_of_the_vocabulary(cls)
    assert (cls.name, cls.label) == METHODS[cls.__name__][1:]
    adapter = testtime.adapt(model, cls.name)
    assert (tuple(adapter.cost), adapter.output, adapter.source) == (cls.cost, cls.output, cls.source)
    assert not builds(cls, network(Tent, nn.BatchNorm2d(4)))


@pytest.mark.parametrize("cls", IMAGE_TEXT, ids=lambda cls: cls.name)
def test_methods_of_image_text_models_declare_what_is_true(cls):
    model = zero_shot()
    test_facts_are_of_the_vocabulary(cls)
    assert (cls.name, cls.label) == METHODS[cls.__name__][1:]
    assert cls.__module__ == METHODS[cls.__name__].module
    takes = {"reward": model.pair, "generate": abs}
    arguments = {name: value for name, value in takes.items() if name in inspect.signature(cls).parameters}
    adapter = testtime.adapt(model, cls.name, **arguments)
    assert (tuple(adapter.cost), adapter.output, adapter.source) == (cls.cost, cls.output, cls.source)
    assert (adapter.stochastic, adapter.episodic) == (cls.stochastic, cls.episodic)
    with pytest.raises(
        ValueError, match="expected a zero-shot classifier, got Sequential; build one from class names"
    ):
        cls(network(Tent, nn.BatchNorm2d(4)), **arguments)


@every_method
def test_it_refuses_tables_where_it_needs_images(cls):
    if {"convolution", "branch", "transformer"} & {*cls.needs}:
        return
    net = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    refused = False
    try:
        build(cls, net).predict(torch.rand(8, 12))
    except ValueError as error:
        refused = "takes batches (N, C, H, W)" in str(error)
    except RuntimeError:  # not prepared
        pass
    assert refused is bool({"images", "views"} & {*cls.needs})


@every_method
def test_a_seed_is_an_argument_where_something_is_drawn(cls):
    takes = "seed" in inspect.signature(cls).parameters
    assert takes or not cls.stochastic
    assert not takes or cls.stochastic or cls.source == "data"  # first weights, and training in prepare


@pytest.mark.parametrize("cls", [c for c in CLASSES if c.source != "none"], ids=lambda cls: cls.name)
def test_prepare_takes_labels_where_a_method_declares_it(cls):
    adapter = build(cls, network(cls, nn.BatchNorm2d(4)))
    labelled = [(torch.rand(8, 3, 8, 8), torch.arange(8) % 2)] * 2
    if cls.labelled_source:
        adapter.prepare(labelled)
    else:
        with pytest.raises(TypeError, match="expected"):
            adapter.prepare(labelled)


def test_the_message_for_multi_task_models_names_the_methods_that_take_them():
    with pytest.raises(ValueError, match="methods for multi-task models are") as refused:
        build(PAFKIP, multi_task())
    named = str(refused.value).rpartition(" are ")[2].replace(" and ", ", ").split(", ")
    assert sorted(named) == sorted(cls.__name__ for cls in CLASSES if not ONE_TASK & {*cls.needs})


def test_the_message_for_segmenters_names_the_methods_that_take_any():
    with pytest.raises(ValueError, match="methods that take") as refused:
        PAFKIP(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)), 2)
    listed = (
        str(refused.value).partition(" are ")[2].partition(", and a")[0].replace(" and ", ", ").split(", ")
    )
    special = {"classifier", "linear head", "branch", "forecaster"}
    assert sorted(listed) == sorted(cls.__name__ for cls in CLASSES if not special & {*cls.needs})


def test_a_class_of_your_own_gets_its_names_from_itself():
    class MyMethod(Adapter):
        pass

    assert (MyMethod.name, MyMethod.label, MyMethod.needs) == ("mymethod", "MyMethod", ("classifier",))


def test_former_facts_are_translated_with_a_warning():
    with pytest.warns(DeprecationWarning, match="OnPixels.dense is now part of needs: 'classifier'"):

        class OnPixels(Adapter):
            dense = True

    with pytest.warns(DeprecationWarning, match="OnImages.images_only is now part of needs: 'images'"):

        class OnImages(Adapter):
            images_only = True

    assert OnPixels.needs == ()
    assert OnImages.needs == ("classifier", "images")


def test_former_names_of_overridden_methods_work_with_a_warning():
    def former(self, x):
        return torch.ones(len(x), 3)

    with pytest.warns(DeprecationWarning, match="Constant._look is now _predict_batch"):
        constant = type("Constant", (Adapter,), {"_look": former})
    assert torch.equal(constant(nn.Linear(4, 3)).predict(torch.rand(2, 4)), torch.ones(2, 3))
    batches = []
    with pytest.warns(DeprecationWarning, match="Learner._learn is now _prepare"):
        learner = type("Learner", (Adapter,), {"_learn": lambda self, source: batches.extend(source)})
    learner(nn.Linear(4, 3)).prepare([torch.rand(2, 4)])
    assert [len(x) for x in batches] == [2]


def test_repr_names_method_wrappers_and_settings_that_are_not_the_defaults():
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    assert repr(Tent(net)) == "Tent(Sequential)"
    tent = Episodic(Tent(net, adam(0.1), norm=testtime.norm.source_statistics, outputs=None))
    assert repr(tent) == (
        "Episodic(Tent(Sequential, optimizer=adam(lr=0.1, beta1=0.9, beta2=0.999, weight_decay=0.0), "
        "norm=source_statistics))"
    )
    assert repr(Source(net, input_range=(0.0, 1.0))) == "Source(Sequential, input_range=(0.0, 1.0))"


def test_the_catalogue_lists_every_method_once_with_its_facts():
    found = {m["name"]: m for m in catalogue()}
    assert list(found) == testtime.list_methods()
    cotta = found["cotta"]
    assert (cotta["forwards"], cotta["backwards"], cotta["output"]) == (34, 1, "teacher")
    assert (cotta["source"], cotta["stochastic"], cotta["norm"]) == ("none", True, list(NORM_KINDS))
    assert found["rotta"]["norm"] == ["BatchNorm"]
    assert found["source"]["reference"] == ""
    shown = text(catalogue())
    assert "Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022" in shown
    assert all(f"\n{name} " in shown for name in found)
