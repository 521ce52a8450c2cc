import importlib
import json
import os
import pkgutil
import re
import signal
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import testtime
from testtime import (
    Adapter,
    Episodic,
    ResetEvery,
    TimeConstrained,
    Window,
    adam,
    adapt,
    list_methods,
    load,
    plugins,
    save,
    sgd,
    state_hash,
)
from testtime.errors import DataError
from testtime.files import read_tensors, write_tensors
from testtime.intake.fingerprint import fingerprint
from testtime.intake.views import Views
from testtime.laws.worlds import TinyViT, autoencoded
from testtime.methods import PAFKIP, AdaContrast, Tent
from testtime.methods.adacontrast import AdaContrastOptions
from testtime.methods.paf_kip import PAFKIPOptions
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer
from testtime.norm import alpha_statistics, batch_statistics, norm_affine
from testtime.parts import entropy, identity, katana
from testtime.saving import OPTIONS, PARTS, _builder, _Own
from testtime.wrap import Wrapper

X = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0, classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)
    return nn.Sequential(*layers).eval()


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
    with pytest.raises(ValueError, match=r"'lr'; it takes optimizer, .*belongs to optimizer=.*adam\(1e-3\)"):
        adapt(network(), "tent", lr=1e-3)
    with pytest.raises(ValueError, match=r"'full_batch'; .* options=AdaContrastOptions\(full_batch=\.\.\.\)"):
        adapt(network(), "adacontrast", full_batch=None)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tent(network(), sgd(0.1)),
        lambda: Tent(network(), norm=partial(alpha_statistics, alpha=0.3)),
        lambda: PAFKIP(
            network(), 3, adam(1e-2), augment=identity, options=PAFKIPOptions(models=("adapting", "ema"))
        ),
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


ELSEWHERE = {
    "adcsd",
    "difftpt",
    "rlcf",
    "tda",
    "tpt",
    "zero",
}  # tests/forecasting and tests/vision_language save them


@pytest.mark.parametrize("name", sorted({*list_methods()} - ELSEWHERE))
def test_every_method_can_be_saved_as_it_comes(name: str, tmp_path: Path) -> None:
    model = {"s4t": synchronized, "ttt-mae": autoencoded, "foa": TinyViT}.get(name, network)()
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
    assert (tmp_path / "adapter.safetensors").stat().st_size < 2500
    assert json.loads((tmp_path / "adapter.json").read_text())["arguments"]["optimizer"]["with"]["lr"] == 1e-3


def test_only_the_owner_reads_the_files(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}


def test_links_are_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "adapter.safetensors").symlink_to(other)
    save(Tent(network()), tmp_path / "here")
    assert other.read_text() == "precious"
    assert isinstance(load(tmp_path / "here", network()), Tent)


# Own classes and functions ----------------------------------------------------------------------------------------------


def test_a_class_is_as_good_as_a_name() -> None:
    assert isinstance(adapt(network(), Tent, optimizer=sgd(0.1)), Tent)
    assert isinstance(adapt(network(), Gentle, strength=2.0), Gentle)
    with pytest.raises(TypeError, match="expected the name of a method or its class, got 3"):
        adapt(network(), 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Gentle.*'classes'.*it takes strength, norm"):
        adapt(network(), Gentle, classes=3)
    with pytest.raises(ValueError, match=r"no method 'pafkipp' \(did you mean 'paf-kip'\?\)"):
        adapt(network(), "pafkipp")


class Gentle(Adapter):
    def __init__(self, model: nn.Module, strength: float = 1.0, norm: Any = batch_statistics) -> None:
        super().__init__(norm(model))
        self.strength, self.norm = strength, norm
        self.adapt(norm_affine(self.model), sgd(0.1))

    def step(self, x: torch.Tensor) -> torch.Tensor:
        y = self.model(x)
        self.update(self.strength * entropy(y).mean())
        return y


class Twice(Wrapper):
    def step(self, x: torch.Tensor) -> torch.Tensor:
        self.adapter(x)
        return self.adapter(x)


def halved(model: nn.Module, alpha: float = 0.5) -> nn.Module:
    return alpha_statistics(model, alpha)


def plain_sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr)


@pytest.mark.parametrize(
    ("make", "classes", "functions"),
    [
        (lambda: Gentle(network(), 0.5), [Gentle], ()),
        (lambda: Gentle(network(), norm=partial(halved, alpha=0.2)), [Gentle], [halved]),
        (lambda: Twice(Gentle(network())), {"Twice": Twice, f"{__name__}:Gentle": Gentle}, ()),
        (lambda: Episodic(Twice(Tent(network()))), [Twice], ()),
        (lambda: Gentle(network(), norm=halved), Gentle, halved),
        (lambda: Tent(network(), norm=halved), (), {"halved": halved}),
        (lambda: Tent(network(), optimizer=partial(plain_sgd, lr=0.2)), (), [plain_sgd]),
        (lambda: Tent(network(), optimizer=partial(torch.optim.SGD, lr=0.2)), (), [torch.optim.SGD]),
    ],
)
def test_own_classes_and_functions_come_from_the_caller(make, classes, functions, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    adapter = make()
    adapter(X)
    save(adapter, tmp_path)
    again = load(tmp_path, network(), classes=classes, functions=functions)
    assert state_hash(again) == state_hash(adapter)
    assert torch.equal(adapter(X).logits, again(X).logits)
    with pytest.raises(
        ValueError, match=r"if it is your own, pass it: testtime\.load\(folder, model, (classes|functions)="
    ):
        load(tmp_path, network())


def test_own_classes_are_never_imported_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        save(Gentle(network()), tmp_path / "a")
        edit(tmp_path / "a", lambda d: d.update(module="evil_module"))
        with pytest.raises(ValueError, match=r"names evil_module\.Gentle.*classes=\[Gentle\]"):
            load(tmp_path / "a", network())
    finally:
        sys.path.remove(str(tmp_path))


def test_what_was_passed_has_to_fit(tmp_path: Path) -> None:
    save(Gentle(network()), tmp_path)
    with pytest.raises(TypeError, match="classes: expected subclasses of Adapter"):
        load(tmp_path, network(), classes=[halved])  # type: ignore[list-item]
    for bad, message in ((None, "got None"), ("halved", "got 'halved'"), ([3], "got 3")):
        with pytest.raises(TypeError, match=f"functions: expected functions, {message}"):
            load(tmp_path, network(), Gentle, bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"functions: functools.partial.* has no name; pass a dictionary"):
        load(tmp_path, network(), Gentle, partial(halved, alpha=0.2))
    other = type("Gentle", (Adapter,), {})
    with pytest.raises(ValueError, match="two of classes have the name 'Gentle'"):
        load(tmp_path, network(), classes=[Gentle, other])


def test_a_class_of_an_installed_package_needs_not_be_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def install(**points: str) -> None:
        made = [EntryPoint(name, value, "testtime.methods") for name, value in points.items()]
        monkeypatch.setattr(plugins, "entry_points", lambda group: made)

    install(other="math:pi", gentle=f"{__name__}:Gentle")
    adapter = Gentle(network(), 0.5)
    adapter(X)
    save(adapter, tmp_path)
    assert json.loads((tmp_path / "adapter.json").read_text())["entry_point"] == "gentle"
    loaded = load(tmp_path, network())
    assert type(loaded) is Gentle
    assert (loaded.strength, state_hash(loaded)) == (0.5, state_hash(adapter))
    for points in (
        {},
        {"other": f"{__name__}:Gentle"},
        {"gentle": "testtime.methods:Tent"},
        {"gentle": "math:pi"},
    ):
        install(**points)  # the file names another class than the package does, or none
        with pytest.raises(
            DataError, match=r"names .*Gentle, which is not one of the parts.*classes=\[Gentle\]"
        ):
            load(tmp_path, network())
    assert type(load(tmp_path, network(), classes=[Gentle])) is Gentle


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"PAFKIP\.augment=.*a function with a name.*state_dict\(\)"):
        save(PAFKIP(network(), 3, augment=lambda x, rng: x), tmp_path)

    class Forgetful(Adapter):
        def __init__(self, model: nn.Module, strength: float = 1.0) -> None:
            super().__init__(model)

    with pytest.raises(ValueError, match=r"no attribute 'strength'.*self\.strength = strength"):
        save(Forgetful(network()), tmp_path)

    class Open(Adapter):
        def __init__(self, model: nn.Module, **options: float) -> None:
            super().__init__(model)

    with pytest.raises(ValueError, match=r"\*\*options.*name every argument"):
        save(Open(network()), tmp_path)
    with pytest.raises(ValueError, match="katana: expected clean of type bool, got 3"):
        save(PAFKIP(network(), 3, augment=partial(katana, clean=3)), tmp_path)

    class Beside(Adapter):
        def __init__(self, model: nn.Module, other: nn.Module) -> None:
            super().__init__(model)
            self.other = other

    with pytest.raises(ValueError, match=r"^Beside\.other=<Sequential> cannot be written"):
        save(Beside(network(), network(seed=1)), tmp_path)
    with pytest.raises(ValueError, match="meanwhile is an adapter of another source model"):
        save(TimeConstrained(Tent(network()), Tent(network(seed=1))), tmp_path)
    assert not list(tmp_path.iterdir())


# What a file may name ---------------------------------------------------------------------------------------------------


def edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a description of one's own with a right checksum, as an attacker can."""
    tensors, metadata = read_tensors(folder / "adapter.safetensors")
    description = json.loads(metadata.pop("testtime"))
    change(description)
    write_tensors(folder / "adapter.safetensors", tensors, {"testtime": json.dumps(description)})
    (folder / "adapter.json").unlink(missing_ok=True)


def test_none_is_kept_where_the_annotation_has_it(tmp_path: Path) -> None:
    options = AdaContrastOptions(capacity=8, full_batch=None)
    save(AdaContrast(network(), options=options), tmp_path)
    assert load(tmp_path, network()).options == options
    edit(tmp_path, lambda d: d["arguments"]["options"]["with"].update(begin=None))
    with pytest.raises(ValueError, match="expected begin of type int, got None"):
        load(tmp_path, network())


def public_functions() -> set[str]:
    """``module:name`` of every function and class of the package that a file might name."""
    found = set()
    for info in pkgutil.walk_packages(testtime.__path__, "testtime."):
        if info.name.rpartition(".")[2] == "__main__":
            continue
        try:
            module = importlib.import_module(info.name)
        except ImportError:  # an extra that is not installed
            continue
        found |= {f"{info.name}:{name}" for name, value in vars(module).items() if callable(value)}
    return found


def test_a_file_calls_registered_parts_only(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    everything = public_functions()
    assert len(everything) > 1000
    registered = {*PARTS, *OPTIONS}
    assert registered < everything
    others = everything - registered | {"os:system", "builtins:eval", "testtime.parts", ":", "torch:load"}
    _, metadata = read_tensors(tmp_path / "adapter.safetensors")
    description = json.loads(metadata["testtime"])
    for name in others:
        description["arguments"]["norm"] = {"function": name, "with": {}}
        with pytest.raises(ValueError, match="not one of the parts that a saved state may name"):
            _builder(description, _Own(tmp_path, {}, {}))
    edit(tmp_path, lambda d: d["arguments"].update(norm={"function": "testtime.space.pretrain:pretrain"}))
    with pytest.raises(
        ValueError, match=r"testtime\.space\.pretrain\.pretrain, which is not one of the parts"
    ):
        load(tmp_path, network())


@pytest.mark.parametrize(
    "norm",
    [
        {"function": "testtime.norm.alpha:alpha_statistics", "with": {"model": 1}},
        {"function": "testtime.norm.alpha:alpha_statistics", "with": {"alpha": "0.1"}},
        {"function": "testtime.norm.alpha:alpha_statistics", "with": {"alpha": {"function": "os:system"}}},
        {"function": "testtime.norm.alpha:alpha_statistics", "with": {"folder": "/tmp"}},
        {"function": "testtime.norm.alpha:alpha_statistics", "with": 3},
        {"function": "testtime.norm.alpha:alpha_statistics", "and": 3},
        {"function": 3},
        {"function": "testtime.parts.optimizers:adam", "with": {}},
        {},
        3,
        "alpha_statistics",
    ],
)
def test_arguments_of_parts_are_checked(norm: Any, tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    edit(tmp_path, lambda d: d["arguments"].update(norm=norm))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path, network())


@pytest.mark.parametrize(
    "change",
    [
        {"class": "Wrapper"},
        {"class": "Nothing"},
        {"class": ["Tent"]},
        {"module": "testtime.wrap"},
        {"module": 3},
        {"arguments": {"optimiser": 3}},
        {"arguments": []},
        {"inner": {}},
        {"model": {"weights": ""}},
        {"model": {"architecture": 3, "weights": "", "parameters": "3", "outputs": None}},
        {"format": 3},
        {"format": None},
    ],
)
def test_a_description_that_makes_no_sense_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    edit(tmp_path, lambda d: d.update(change))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load(tmp_path, network())


# Damage -----------------------------------------------------------------------------------------------------------------


def test_the_order_of_folder_and_model_is_in_the_error(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    with pytest.raises(TypeError, match=r"testtime\.load\(folder, model\)"):
        load(network(), tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("inside", ["", "adapter", "a/b"])
def test_a_file_in_place_of_the_folder_is_named_and_kept(tmp_path: Path, inside: str) -> None:
    taken = tmp_path / "runs"
    taken.write_text("notes")
    with pytest.raises(
        FileExistsError, match="runs is a file; expected a folder.*give another name, or remove"
    ):
        save(Tent(network()), taken / inside)
    assert taken.read_text() == "notes"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


def test_a_missing_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"adapter\.safetensors is missing.*testtime\.save"):
        load(tmp_path, network())


@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_damaged_files_are_named(tmp_path: Path, name: str, keep: float) -> None:
    save(Tent(network()), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(ValueError, match=f"{name}.*damaged"):
        load(tmp_path, network())


def test_flipped_bits_are_refused_or_change_nothing(tmp_path: Path) -> None:
    adapter = Tent(network())
    adapter(X)
    save(adapter, tmp_path)
    path = tmp_path / "adapter.safetensors"
    content, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for place in rng.permutation(8 * len(content))[:200]:
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            assert state_hash(load(tmp_path, network())) == state_hash(adapter)
        except ValueError:
            refused += 1
    assert refused >= 190


def test_an_edited_copy_is_refused_and_an_older_one_is_not(tmp_path: Path) -> None:
    save(Tent(network(), sgd(0.1)), tmp_path)
    older = (tmp_path / "adapter.json").read_bytes()
    save(Tent(network(), sgd(0.2)), tmp_path)
    content = json.loads((tmp_path / "adapter.json").read_text())
    (tmp_path / "adapter.json").write_bytes(older)  # a kill between the two files
    assert load(tmp_path, network()).optimizer.lr == 0.2
    content["arguments"]["optimizer"]["with"]["lr"] = 0.3
    (tmp_path / "adapter.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"adapter\.json was edited; .*delete it"):
        load(tmp_path, network())
    (tmp_path / "adapter.json").unlink()
    assert load(tmp_path, network()).optimizer.lr == 0.2


def test_deep_json_is_refused(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    (tmp_path / "adapter.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"adapter\.json is damaged.*64 levels"):
        load(tmp_path, network())


def test_a_full_disk_is_an_oserror_and_keeps_the_older_state(tmp_path: Path) -> None:
    limits = pytest.importorskip("resource")
    adapter = Tent(network())
    save(adapter, tmp_path)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limits.setrlimit(limits.RLIMIT_FSIZE, (500, 500))
            save(Tent(network(seed=1)), tmp_path)
        except OSError as error:
            status = 0 if "adapter.safetensors" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert state_hash(load(tmp_path, network())) == state_hash(adapter)


# Source models ----------------------------------------------------------------------------------------------------------


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    wider = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(180, 3))
    with pytest.raises(
        ValueError, match=r"another architecture: 555 parameters and 3 outputs there, 693 .* here"
    ):
        load(tmp_path, wider)
    with pytest.raises(ValueError, match="another architecture"):
        load(tmp_path, network(classes=4))
    with pytest.raises(ValueError, match="another source model: the architecture is the same"):
        load(tmp_path, network(seed=1))


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "1.running_var", "4.bias"])
def test_one_other_weight_is_another_model(name: str, tmp_path: Path) -> None:
    save(Tent(network()), tmp_path)
    other = network()
    other.state_dict()[name].view(-1)[-1] += 1e-6
    with pytest.raises(ValueError, match="another source model"):
        load(tmp_path, other)


@pytest.mark.parametrize("method", ["tent", "paf-kip", "cotta", "rotta", "note", "eata", "vida", "ecotta"])
def test_whatever_an_adapter_has_seen_its_source_model_is_the_same(method: str, tmp_path: Path) -> None:
    model = network()
    arguments = {} if method in ("tent", "cotta", "vida", "ecotta") else {"classes": 3}
    adapter = adapt(model, method, **arguments)
    before = adapter.fingerprint
    assert before == fingerprint(network())
    if adapter.source != "none":
        adapter.prepare([X[:4], X[4:]])
    adapter(X), adapter(X)
    model.train()
    save(adapter, tmp_path)
    again = load(tmp_path, network())
    again(X)
    again.reset()
    save(again, tmp_path)
    assert load(tmp_path, model.eval()).fingerprint == before


def test_the_dtype_of_an_adapter_comes_back(tmp_path: Path) -> None:
    adapter = Tent(network()).to(torch.float64)
    adapter(X.double())
    save(adapter, tmp_path)
    again = load(tmp_path, network())
    assert state_hash(again) == state_hash(adapter)
    assert again(X.double()).dtype == torch.float64


def test_what_an_adapter_knows_of_its_model_comes_back(tmp_path: Path) -> None:
    adapter = adapt(network(), "paf-kip", classes=3, preserves=Views(mirror=False), input_range=(0.0, 2.0))
    assert adapter.fingerprint == fingerprint(network())
    adapter(X)
    save(adapter, tmp_path)
    again = load(tmp_path, network())
    assert state_hash(again) == state_hash(adapter)
    assert (again.preserves, again.input_range) == (Views(mirror=False), (0.0, 2.0))


def test_wrappers_with_another_adapter_beside_come_back(tmp_path: Path) -> None:
    model = network()
    adapter = TimeConstrained(Tent(model), Tent(model, sgd(0.5)), speed=0.5, cost=4.0)
    for _ in range(4):
        adapter(X)
    save(adapter, tmp_path)
    again = load(tmp_path, model)
    assert isinstance(again, TimeConstrained)
    assert (again.taken, again.speed, again.meanwhile.optimizer.lr) == (4.0, 0.5, 0.5)
    assert state_hash(again) == state_hash(adapter)


# The first format -------------------------------------------------------------------------------------------------------

FIRST = """{
  "format": 1,
  "class": "Episodic",
  "arguments": {},
  "inner": {
    "class": "PAFKIP",
    "arguments": {
      "classes": 3,
      "optimizer": {"function": "testtime.parts.optimizers:adam",
                    "with": {"lr": 0.01, "beta1": 0.9, "beta2": 0.999, "weight_decay": 0.0}},
      "models": ["adapting", "ema"],
      "augment": {"function": "testtime.parts.augment:identity"},
      "norm": {"function": "testtime.norm.alpha:alpha_statistics", "with": {"alpha": 0.3}}
    }
  }
}
"""


def first_format(folder: Path, text: str = FIRST) -> Adapter:
    norm = partial(alpha_statistics, alpha=0.3)
    adapter = Episodic(
        PAFKIP(
            network(),
            3,
            adam(1e-2),
            augment=identity,
            options=PAFKIPOptions(models=("adapting", "ema")),
            norm=norm,
        )
    )
    adapter(X), adapter(X.flip(0))
    save_file(adapter.state_dict(), folder / "adapter.safetensors")
    (folder / "adapter.json").write_text(text)
    return adapter


def test_folders_of_the_first_format_are_loaded_with_a_warning(tmp_path: Path) -> None:
    adapter = first_format(tmp_path)
    with pytest.warns(UserWarning, match="without a fingerprint"):
        again = load(tmp_path, network())
    assert state_hash(again) == state_hash(adapter)
    assert torch.equal(adapter(X).logits, again(X).logits)
    save(again, tmp_path)
    assert state_hash(load(tmp_path, network())) == state_hash(adapter)


def test_folders_of_the_first_format_call_registered_parts_only(tmp_path: Path) -> None:
    first_format(
        tmp_path, FIRST.replace("testtime.parts.augment:identity", "testtime.space.pretrain:pretrain")
    )
    with pytest.raises(ValueError, match="not one of the parts"):
        load(tmp_path, network())


# Kills ------------------------------------------------------------------------------------------------------------------


def killed_while_saving(folder: Path, kills: int) -> set[float]:
    """Kill a process that saves two adapters in turns; what is then in the folder must be one of them."""
    adapters = [Tent(network(), sgd(rate)) for rate in (0.1, 0.2)]
    adapters[0](X), adapters[1](X), adapters[1](X)
    whole = {(state_hash(a), a.optimizer.lr) for a in adapters}
    save(adapters[0], folder)
    rng, found = np.random.default_rng(0), set()
    for _ in range(kills):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            while True:
                for adapter in reversed(adapters):
                    save(adapter, folder)
                    os.write(writing, b".")
        os.close(writing)
        for _ in range(
            rng.integers(3)
        ):  # whole saves, however slow the machine is; then somewhere in the next ones
            assert os.read(reading, 1) == b"."
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reading)
        there = load(folder, network())
        assert (state_hash(there), there.optimizer.lr) in whole
        found.add(there.optimizer.lr)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_leaves_the_older_adapter_or_the_newer(tmp_path: Path) -> None:
    assert killed_while_saving(tmp_path, 40) == {0.1, 0.2}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_many_kills_leave_the_older_adapter_or_the_newer(tmp_path: Path) -> None:
    killed_while_saving(tmp_path, 1000)


@pytest.mark.parametrize("method", ["tent", "rotta", "lame", "cotta"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_adapter_that_was_converted_goes_on_where_it_was(
    method: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    keywords = {"classes": 5, "capacity": 8, "frequency": 8} if method == "rotta" else {}
    x = torch.rand(8, 3, 8, 8)

    def made() -> Adapter:
        return adapt(net, method, **keywords)

    adapter = made()
    adapter(x)
    adapter.to(dtype)
    assert adapter(x.to(dtype)).valid.all()
    save(adapter, tmp_path)
    loaded = load(tmp_path, net)
    assert state_hash(loaded) == state_hash(adapter)
    assert loaded(x.to(dtype)).equal(adapter(x.to(dtype)))
    adapter.reset()
    assert state_hash(adapter) == state_hash(made().to(dtype))
    back = adapter.float()
    assert back(x).valid.all()
    assert back.state_dict().keys() == made().state_dict().keys()


def test_what_is_no_adapter_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected an adapter, .* got Linear"):
        save(nn.Linear(2, 2), tmp_path / "new")  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


def test_a_dtype_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5))
    save(Tent(net), tmp_path)
    tensors, metadata = read_tensors(tmp_path / "adapter.safetensors")
    described = json.loads(metadata["testtime"]) | {"dtype": ["float16"]}
    write_tensors(tmp_path / "adapter.safetensors", tensors, {"testtime": json.dumps(described)})
    (tmp_path / "adapter.json").unlink()
    with pytest.raises(DataError, match="the dtype"):
        load(tmp_path, net)
