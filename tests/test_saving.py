import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import testtime
from testtime import Episodic, ResetEvery, Window, adam, adapt, list_methods, load, save, sgd, state_hash
from testtime.laws.worlds import autoencoded
from testtime.methods import PAFKIP, Tent
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer
from testtime.norm import alpha_statistics
from testtime.parts import identity

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    ).eval()


def test_every_class_has_a_name() -> None:
    assert len(list_methods()) == len(testtime.methods.__all__)
    assert {"source", "tent", "paf-kip"} <= set(list_methods())


@pytest.mark.parametrize("name", ["paf-kip", "PAF_KIP", "PAFKIP"])
def test_names_are_forgiving(name: str) -> None:
    adapter = adapt(network(), name, classes=3, alpha=0.7)
    assert isinstance(adapter, PAFKIP)
    assert adapter.alpha == 0.7


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match="no method 'tnet'.*paf-kip"):
        adapt(network(), "tnet")


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="PAFKIP.*'classes'.*it takes classes, optimizer"):
        adapt(network(), "paf-kip")


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tent(network(), sgd(0.1)),
        lambda: Tent(network(), norm=partial(alpha_statistics, alpha=0.3)),
        lambda: PAFKIP(network(), 3, adam(1e-2), augment=identity, models=("adapting", "ema")),
        lambda: ResetEvery(Tent(network()), 3),
        lambda: Episodic(ResetEvery(Tent(network()), 2)),
        lambda: Window(Tent(network()), 4),
    ],
)
def test_a_saved_adapter_continues_where_it_was(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    adapter = make()
    adapter(X), adapter(X.flip(0))
    save(adapter, tmp_path / "here")
    again = load(tmp_path / "here", network())
    assert state_hash(again) == state_hash(adapter)
    assert torch.equal(adapter(X).logits, again(X).logits)
    assert state_hash(again) == state_hash(adapter)
    assert sorted(p.name for p in (tmp_path / "here").iterdir()) == ["adapter.json", "adapter.safetensors"]


def synchronized() -> nn.Module:
    torch.manual_seed(0)
    tasks = {"depth": Depth(), "edge": Edges()}
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    net = MultiTaskNet(encoder, {task: nn.Conv2d(4, 1, 1) for task in tasks}, tasks)
    return Assisted(net, Synchronizer(tasks, 4, 2, 8, 4, 8, 1, 1, 2)).eval()


@pytest.mark.parametrize("name", list_methods())
def test_every_method_can_be_saved_as_it_comes(name: str, tmp_path: Path) -> None:
    model = {"s4t": synchronized, "ttt-mae": autoencoded}.get(name, network)()
    try:
        adapter = adapt(model, name)
    except ValueError:
        adapter = adapt(model, name, classes=3)
    if adapter.source != "none":
        adapter.prepare([X[:4], X[4:]])
    adapter(X)
    save(adapter, tmp_path)
    assert state_hash(load(tmp_path, model)) == state_hash(adapter)


def test_only_what_moves_is_saved(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    assert (tmp_path / "adapter.safetensors").stat().st_size < 1500
    assert json.loads((tmp_path / "adapter.json").read_text())["arguments"]["optimizer"]["with"]["lr"] == 1e-3


def test_own_functions_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"augment=.*state_dict\(\)"):
        save(PAFKIP(network(), 3, augment=lambda x, rng: x), tmp_path)


def test_a_missing_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter\.json is missing.*testtime\.save"):
        load(tmp_path, network())


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    save(Tent(network()), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{name}.*damaged"):
        load(tmp_path, network())


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    other = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 3))
    with pytest.raises(ValueError, match="shape"):
        load(tmp_path, other)
    with pytest.raises(ValueError, match="does not belong to this Tent"):
        load(tmp_path, nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(192, 3)))
