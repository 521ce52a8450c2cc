"""Own images, own networks and own methods in any experiment of the family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_online import asked, results, run

from testtime.data import Crop
from testtime.data.places import find_set, image_size, images_of
from testtime.errors import DataError
from testtime.experiments import Request, read_run
from testtime.experiments.online.experiment import online
from testtime.experiments.online.results import Results
from testtime.files import write_tensors
from testtime.models import open_model, resnet20
from testtime.streams.named import corrupted_domains

image = pytest.importorskip("PIL.Image", reason="pip install -e '.[images]'")
CLASSES = ("cat", "dog", "fox")


def photographs(folder: Path, classes: tuple[str, ...] = CLASSES, each: int = 8, seed: int = 0) -> Path:
    """A folder of images for each class, of one colour and noise."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(each):
            pixels = rng.normal(60 + 70 * number, 25, (36, 40, 3)).clip(0, 255).astype(np.uint8)
            image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def network(path: Path, classes: int = 3) -> Path:
    torch.manual_seed(0)
    return write_tensors(path, resnet20(classes).state_dict())


@pytest.fixture
def own(tmp_path: Path) -> Request:
    """CIFAR-10's experiment, asked for own images and an own network."""
    settings = {"corruptions": ["fog", "contrast"], "batch_size": 8}
    data, model = photographs(tmp_path / "photos"), network(tmp_path / "mine.safetensors")
    base = Request("cifar10-open", (0,), ("TENT", "EATA"), precision="float32", settings=settings)
    return replace(base, data=str(data), model=str(model))


def test_any_experiment_takes_own_images_and_an_own_network(own: Request, tmp_path: Path) -> None:
    assert run(tmp_path / "runs" / "own", own).exit_code == 0
    found = read_run(tmp_path / "runs" / "own")
    assert list(results(found.folder)) == [("Source", "closed set", 0), ("TENT", "closed set", 0)]
    assert found.stand_ins == {
        "closed set": ("photos", "cifar10"),
        "source model": ("mine", "cifar10-resnet20-augmix"),
    }
    assert found.about["about"]["left_out"] == ["EATA"]  # there are no images of the source
    (tent,) = Results(found).cells("TENT")
    assert (tent["images"], tent["batches"], [d["domain"] for d in tent["domains"]]) == (
        48,
        6,
        ["fog", "contrast"],
    )
    text = online("cifar10-open").tables(found)[0].text()
    assert "closed set: photos stands in for cifar10." in text
    unit = found.about["cells"][0]["unit"]
    assert str(tmp_path) not in str(found.results[unit]["unit"])  # the result does not depend on places


def test_images_of_the_source_let_the_others_take_part_and_own_unknown_images_are_mixed_in(
    own: Request, tmp_path: Path
) -> None:
    photographs(tmp_path / "source", seed=1)
    photographs(tmp_path / "unknown", ("",), 20, 2)
    settings = {**own.settings, "source": str(tmp_path / "source"), "open_sets": [str(tmp_path / "unknown")]}
    assert run(tmp_path / "runs" / "own", replace(own, rows=("EATA",), settings=settings)).exit_code == 0
    found = results(tmp_path / "runs" / "own")
    assert list(found) == [("Source", "unknown", 0), ("EATA", "unknown", 0)]
    assert {(r["images"], r["unknown"]) for r in found.values()} == {(48, 48)}


def test_an_own_method_is_a_row_beside_the_others(own: Request, tmp_path: Path) -> None:
    request = replace(own, rows=("TENT",), methods=("testtime.methods.tent:Tent",))
    assert run(tmp_path / "runs" / "own", request).exit_code == 0
    found = results(tmp_path / "runs" / "own")
    own_row = "TENT (testtime.methods.tent:Tent)"
    assert [row for row, _, _ in found] == ["Source", "TENT", own_row]
    assert found["TENT", "closed set", 0]["average"] == found[own_row, "closed set", 0]["average"]


def test_another_network_takes_the_place_of_the_experiments(tmp_path: Path) -> None:
    path = network(tmp_path / "digits.safetensors", 10)
    request = asked(rows=("Source",), model=str(path), open_sets=["none"])
    assert run(tmp_path / "runs" / "run", request).exit_code == 0
    found = read_run(tmp_path / "runs" / "run")
    assert found.stand_ins == {"source model": ("digits", "digits-cnn")}
    assert found.about["facts"]["weights"] == open_model(str(path)).digest


def test_what_does_not_fit_says_what_to_do(own: Request, tmp_path: Path) -> None:
    def refused(request: Request) -> str:
        with pytest.raises(DataError) as caught:
            run(tmp_path / "runs" / "no", request)
        assert not (tmp_path / "runs").exists()
        return str(caught.value)

    four = photographs(tmp_path / "four", (*CLASSES, "wolf"))
    message = refused(replace(own, data=str(four)))
    assert "cifar-10-batches-bin" in message
    assert "expected 3 classes of four, as many as mine has outputs, found 4 (cat, dog, fox, ...)" in message
    assert "give a --model of these classes" in message
    assert "nowhere: no such folder; expected that of data sets" in refused(
        replace(own, data=str(tmp_path / "nowhere"))
    )


def test_a_set_has_as_many_classes_as_the_model_has_outputs(tmp_path: Path) -> None:
    for folder, name in ((tmp_path / "part", "n02099601"), (tmp_path / "mine", "cats")):
        photographs(folder / "imagenet" / "val", (name,), 1)
    model = replace(open_model("digits-cnn"), name="imagenet-resnet18", classes=1000)
    assert model.check_classes(images_of("imagenet", {"data": str(tmp_path / "part")})) == 1000
    with pytest.raises(
        DataError, match=r"expected 1,000 classes of imagenet-val, .* found 1 \(cats, \.\.\.\)"
    ):
        model.check_classes(images_of("imagenet", {"data": str(tmp_path / "mine")}))


def test_our_imagenet_c_keeps_the_shape_of_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((600, 300, 3), np.uint8)
    pixels[250:350, 100:200] = 255
    (tmp_path / "imagenet" / "val" / "n01").mkdir(parents=True)
    image.fromarray(pixels).save(tmp_path / "imagenet" / "val" / "n01" / "a.png")
    (domain,), origin = corrupted_domains(
        "imagenet", {"data": str(tmp_path)}, ["brightness"], 1, image_size("imagenet", 224)
    )
    assert origin.startswith("ours-")
    assert domain.size == Crop(224, 256)
    seen = domain.render(np.array([0]))[0, 0] > 127
    assert (seen.shape, int(seen.any(1).sum()), int(seen.any(0).sum())) == ((224, 224), 86, 86)


def test_an_unknown_set_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"no data set 'svnh' \(did you mean 'svhn'\?\); there are none, cifar10"
    ):
        find_set("svnh", {})


def test_folders_of_one_name_are_two_sets(own: Request, tmp_path: Path) -> None:
    """Unknown images in a folder that is named as that of the known ones, as a built-in set, or as the place of the source."""
    places: dict[str, str] = {"data": str(tmp_path)}
    folders = [photographs(tmp_path / f"{name}/images", each=1) for name in "ab"]
    folders += [photographs(tmp_path / f"own/{name}", each=1) for name in ("photographs", "source")]
    names = [find_set(str(folder), places) for folder in [*folders, *folders]]
    assert names == [*2 * ["images", "b-images", "own-photographs", "own-source"]]
    assert {name: places[f"set {name}"] for name in names} == dict(
        zip(names, map(str, folders), strict=False)
    )
    settings = {**own.settings, "open_sets": [str(tmp_path / "b/images")], "batch_size": 4}
    other = replace(own, data=str(tmp_path / "a/images"), settings=settings, rows=("Source",))
    assert run(tmp_path / "runs" / "two", other).exit_code == 0
    unit = next(
        u for u in read_run(tmp_path / "runs" / "two").results.values() if "closed" in u["unit"]["parameters"]
    )
    parameters = unit["unit"]["parameters"]
    assert (parameters["closed"], parameters["open_set"]) == ("a-images", "images")


def test_a_named_set_is_no_folder_of_the_source(own: Request, tmp_path: Path) -> None:
    asked_for = replace(own, settings={**own.settings, "source": "digits"})
    with pytest.raises(ValueError, match="expected a folder of images of the source as the setting source"):
        run(tmp_path / "runs" / "named", asked_for)


def test_own_images_one_by_one_need_no_room_for_unknown_ones(own: Request, tmp_path: Path) -> None:
    asked_for = replace(own, settings={**own.settings, "batch_size": 1}, rows=("Source",), limit=4)
    assert run(tmp_path / "runs" / "one", asked_for).exit_code == 0
