"""Studies: every row of every table runs, units are shared, a second call goes on, a row that fails leaves the others alone."""

import base64
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import pytest
import torch
from speck import SPECK

from testtime import Adapter
from testtime.experiments import Request, find_experiment, list_experiments, read_run, run_experiment
from testtime.experiments.experiment import closure
from testtime.experiments.multitask.planning import PRESETS, Planner, at_rate
from testtime.experiments.multitask.studies import STUDIES, Study, find_row
from testtime.experiments.store import Store, execute
from testtime.multitask.branches import build
from testtime.multitask.houses import TASKS, Houses, Noisy
from testtime.multitask.protocol import Protocol
from testtime.report import page_html
from testtime.scenes.groups import GROUPS

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")

SHORT = Protocol(steps=2, batch=4)
BASE = find_row("Base")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multitask")


@pytest.fixture(autouse=True)
def speck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "speck", SPECK)


def short(*rows: Any, **facts: Any) -> Study:
    study = Study("multitask-table1")
    study.rows, study.protocol, study.seeds = list(rows), SHORT, (0, 1)
    vars(study).update(facts)
    return study


def asked(**facts: Any) -> Request:
    return Request("multitask-table1", precision="float32", settings={"preset": "speck"}, **facts)


def silent(line: str) -> None:
    return None


@final
class Fails(Adapter):
    """A method that cannot be made."""

    needs = ()

    def __init__(self, model: Any) -> None:
        raise RuntimeError("no such luck")

    def step(self, x: Any) -> Any:
        return x


@final
class Explodes(Adapter):
    """Predicts what is not finite once it has learned at a rate above 1."""

    needs = ()

    def __init__(self, model: Any, optimizer: Any) -> None:
        super().__init__(model)
        self.rate = optimizer.lr

    def step(self, x: Any) -> Any:
        return self.model(x)

    def _predict_batch(self, x: Any) -> Any:
        return {k: y * (torch.inf if self.clock and self.rate > 1 else 1) for k, y in self.model(x).items()}


def test_units_are_shared_and_a_second_call_goes_on(folder: Path) -> None:
    ours = find_row({"like": "S4T", "label": "S4T", "rates": [1e-3, 1e-2]})
    one = short(BASE, find_row({"control": "S4T"}), ours)
    request = asked(methods=("test_studies:Fails",))
    summary = run_experiment(one, request, folder / "one", say=silent)
    assert list(summary.failed) == ["rate of Fails, seed 0"]
    assert list(summary.not_run) == ["Fails, target, seed 0", "Fails, target, seed 1"]
    assert set(summary.failed.values()) == {"RuntimeError: no such luck"}
    run = read_run(folder / "one")
    cells = {(one.row, one.seed): one.result for one in run.records()}
    assert set(cells) == {(row, seed) for row in ("Base", "S4T's network, BN only", "S4T") for seed in (0, 1)}
    base = cells["Base", 0]
    assert base["steps"] == [0, 1, 2]
    assert all(len(set(series)) == 1 for series in base["values"].values())  # what is not adapted stays
    rate = run.other("rate of S4T")
    assert rate is not None
    assert set(rate["tried"]) == {"0.001", "0.01"}
    assert cells["S4T", 1]["rate"] == rate["rate"] == float(max(rate["tried"], key=rate["tried"].get))
    assert base["parameters"] < cells["S4T", 0]["parameters"]
    assert cells["S4T's network, BN only", 0]["parameters"] == cells["S4T", 0]["parameters"]
    names = [unit["name"] for unit in run.about["units"].values()]
    assert sorted(name for name in names if name.startswith("network")) == [
        f"network with {branch}, seed {seed}"
        for branch in ("branch synchronizer", "no branch")
        for seed in (0, 1)
    ]  # S4T and its control share theirs, the base and the own method too
    found = run.other("pictures")
    assert found is not None
    assert len(found["sheets"]) == 3
    assert all(base64.b64decode(sheet["dark"]).startswith(b"\x89PNG") for sheet in found["sheets"])
    assert run.about["about"]["drawn"] == {"row": "S4T", "control": "S4T's network, BN only"}

    lines: list[str] = []
    unit = next(cell["unit"] for cell in run.about["cells"] if (cell["row"], cell["seed"]) == ("S4T", 1))
    shutil.rmtree(Store(folder / "store").folder(unit))
    for path in (folder / "one" / "results").glob(f"*{unit[:12]}.json"):
        path.unlink()
    again = run_experiment(one, asked(), folder / "one", say=lines.append)
    assert again.done == ["S4T, target, seed 1"]
    assert read_run(folder / "one").results[unit]["result"]["values"] == cells["S4T", 1]["values"]
    other = run_experiment(one, asked(rows=("s4t",), seeds=(0,)), folder / "other", say=silent)
    assert [row.label for row in read_run(folder / "other").rows] == ["Base", "S4T"]
    assert other.done == ["pictures, seed 0"]  # without the control; everything else is in the store
    assert read_run(folder / "other").missing == []


def test_a_rate_at_which_a_method_diverges_is_out(folder: Path) -> None:
    explodes = {"like": "Base", "method": "test_studies:Explodes", "role": "method"}
    rows = [
        find_row({**explodes, "label": "Explodes", "rates": [2.0, 1e-4]}),
        find_row({**explodes, "label": "Wild", "rates": [2.0, 3.0]}),
    ]
    summary = run_experiment(short(BASE, *rows), asked(seeds=(0,)), folder / "explodes", say=silent)
    found = read_run(folder / "explodes").other("rate of Explodes")
    assert found == {"rate": 1e-4, "tried": {"2.0": None, "0.0001": found["tried"]["0.0001"]}}
    assert "diverges at every rate of [2.0, 3.0]" in summary.failed["rate of Wild, seed 0"]
    assert read_run(folder / "explodes").missing == ["Wild, target, seed 0"]


@pytest.mark.parametrize("row", STUDIES["multitask-table1"].rows, ids=lambda row: row.label)
def test_every_row_of_table_1_runs(row: Any, folder: Path) -> None:
    planner = Planner(asked(), "speck", SHORT, BASE)
    unit = planner.adapting(
        "adapt", row.label, {"row": at_rate(row, row.about["rates"][0])}, 0, SPECK["target"]
    )
    for one in closure([unit]):
        assert execute(one.described(), str(folder / "store")) == {"state": "done"}
    cell = Store(folder / "store").result(unit.address)
    assert cell is not None
    values = cell["result"]["values"]
    assert set(values) == {"semseg", "depth", "normals", "edge"}
    assert (values["depth"][0] != values["depth"][-1]) == (row.about["method"] != "Source")


def network(study: str, label: str) -> Any:
    row = next(row for row in STUDIES[f"multitask-{study}"].rows if row.label == label)
    planner = Planner(asked(), "speck", SHORT, BASE)
    return build(TASKS, planner.network(row, 0).parameters["network"], 0)


def test_the_variants_differ_in_what_their_names_say() -> None:
    def branch(study: str, label: str) -> Any:
        return network(study, label).branch

    assert branch("components", "TBS").ratio == 0
    assert list(branch("components", "TBS").embed) == ["z"]
    assert len(branch("components", "TBS + projection").embed) == 4
    assert branch("components", "TBS + masks, image reconstruction").options.reconstruct
    assert branch("masks", "(d) hide tasks").options.strategy == "hide"
    assert branch("masks", "(c) same for all").options.layout == "per_task"
    assert branch("ratio", "0.95").ratio == 0.95
    assert list(branch("single", "only depth").tasks) == ["depth"]
    assert [row.label for row in STUDIES["multitask-ratio"].rows[8:]] == [
        f"{ratio}'s network, BN only" for ratio in ("0", "0.25", "0.5", "0.7", "0.8", "0.9", "0.95")
    ]


def test_equal_networks_are_one_unit_across_studies() -> None:
    planner = Planner(asked(), "speck", SHORT, BASE)
    address = {
        label: planner.network(find_row(label), 0).address
        for label in ("S4T", "0.8", "0", "TBS + projection", "TBS")
    }
    assert address["S4T"] == address["0.8"]
    assert address["0"] == address["TBS + projection"] != address["TBS"]
    rate = planner.rate(find_row("S4T"))
    assert rate is not None
    ends = replace(planner, protocol=replace(SHORT, record_every=2)).rate(find_row("S4T"))
    assert ends is not None
    assert rate.address == ends.address  # learning rates are judged by the last step alone


def test_the_order_of_the_target_is_the_seeds(folder: Path) -> None:
    run_experiment(short(BASE, find_row("BN only")), asked(), folder / "order", say=silent)
    cells = {(one.row, one.seed): one.result for one in read_run(folder / "order").records()}
    assert cells["BN only", 0]["values"] != cells["BN only", 1]["values"]


def test_a_limit_takes_the_first_images_and_own_weights_are_facts(folder: Path, tmp_path: Path) -> None:
    one = short(BASE)
    run_experiment(one, asked(seeds=(0,), limit=2), folder / "limit", folder / "store", say=silent)
    (few,) = read_run(folder / "limit").records()
    run_experiment(one, asked(seeds=(0,)), folder / "whole", folder / "store", say=silent)
    (all_,) = read_run(folder / "whole").records()
    assert few.result["values"] != all_.result["values"]
    weights = tmp_path / "resnet18.safetensors"
    weights.write_bytes(b"weights")
    plan = one.plan(asked(seeds=(0,), model=str(weights)))
    source = next(iter(plan.cells)).unit.needs["row"]
    assert source.places == {"imagenet": str(weights)}
    assert len(source.parameters["imagenet"]) == 64
    assert plan.used["encoder"] == "ImageNet weights"


def test_noise_is_a_share_of_each_images_deviation(folder: Path) -> None:
    cache = folder / "store" / "cache"
    target = Houses(**SPECK["target"])
    clean, rough = target.read(cache), replace(target, noise=0.4).read(cache)
    assert isinstance(rough, Noisy)
    assert clean.classes == tuple(GROUPS)
    difference = rough[1].image - clean[1].image
    inside = (rough[1].image > 0) & (rough[1].image < 1)
    assert difference[inside].std().item() == pytest.approx(0.4 * clean[1].image.std().item(), rel=0.15)
    assert torch.equal(rough[1].image, rough[1].image)
    assert torch.equal(rough[1].labels["semseg"], clean[1].labels["semseg"])


@pytest.mark.slow
def test_domains_change_parts_of_the_preset_and_the_protocol(folder: Path) -> None:
    changes = {
        "usual": {"target": {"houses": 1, "frames": 40, "style": "default"}, "one_room": True},
        "longer": {"protocol": {"steps": 3}, "network": {"norm": "group"}},
    }
    rows = [BASE, find_row({"like": "labels of the batch", "label": "labels", "rates": [1e-3, 1e-2]})]
    one = short(*rows, domains=changes)
    plan = one.plan(asked(seeds=(0,), limit=12))
    cells = {(cell.row, cell.column): cell.unit for cell in plan.cells}
    assert set(plan.others) == {"rate of labels", "rate of labels, longer"}
    usual, longer = cells["labels", "usual"].parameters, cells["labels", "longer"].parameters
    assert (usual["houses"]["frames"], longer["houses"]["frames"]) == (40, 5)
    assert (usual["protocol"]["steps"], longer["protocol"]["steps"]) == (2, 3)
    assert (usual["one_room"], "one_room" in longer) == (True, False)
    assert [p["rows"]["row"]["network"].get("norm") for p in (usual, longer)] == [None, "group"]
    run_experiment(one, asked(seeds=(0,), limit=12), folder / "domains", say=silent)
    run = read_run(folder / "domains")
    titles = [table.title for table in one.tables(run)]
    assert titles == ["usual, after step 2", "longer, after step 3", "Δ last by domain"]
    values = {(c.row, c.column): c.result["values"]["depth"] for c in run.records()}
    assert values["labels", "usual"][0] == values["Base", "usual"][0] != values["labels", "usual"][-1]


@pytest.mark.slow
def test_networks_of_three_tasks_and_of_another_architecture(folder: Path) -> None:
    rows = [BASE, find_row({"control": "S4T"}), find_row({"like": "S4T", "label": "S4T", "rates": [1e-3]})]
    tasks = ["semseg", "normals", "edge"]
    one = short(*rows, domains={"few": {"network": {"tasks": tasks, "architecture": "mti-net"}}})
    run_experiment(one, asked(seeds=(0,)), folder / "few", say=silent)
    run = read_run(folder / "few")
    assert [list(one.result["values"]) for one in run.records()] == [tasks] * 3
    (table,) = one.tables(run)
    assert math.isnan(table.value("S4T", table.column("depth")))
    assert table.value("S4T", table.column("normals")) > 0
    assert "Depth over the steps" not in page_html(one.page(run))


def test_noise_is_judged_against_the_clean_base_too(folder: Path) -> None:
    one = Study("multitask-noise")
    one.rows, one.protocol = [BASE, find_row("BN only")], SHORT
    one.domains = {"target": {}, "rough": {"target": {"noise": 0.4}}}
    request = replace(asked(seeds=(0,)), experiment=one.name)
    run_experiment(one, request, folder / "against", folder / "store", say=silent)
    *_, own, clean = one.tables(read_run(folder / "against"))
    assert clean.title == "Δ last by domain, against the base of target"
    assert clean.value("BN only", clean.columns[0]) == own.value("BN only", own.columns[0])
    assert clean.value("BN only", clean.columns[1]) != own.value("BN only", own.columns[1])
    assert own.value("Base", own.columns[1]) == 0 != clean.value("Base", clean.columns[1])


def test_names_are_checked() -> None:
    with pytest.raises(ValueError, match="no preset 'huge'; there are tiny, paper, small, demo"):
        find_experiment("multitask-noise").plan(replace(asked(), settings={"preset": "huge"}))
    with pytest.raises(ValueError, match="no row 'S5T' .did you mean 'S4T'"):
        STUDIES["multitask-table1"].plan(asked(rows=("S5T",)))
    listed = list_experiments("multitask")["multitask"]
    assert len(listed) == 29
    assert all(find_experiment(one.name).name == one.name for one in listed)
