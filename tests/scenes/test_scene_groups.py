"""Groups of classes: every class of furniture is in one group, and spaces are read with them."""

from pathlib import Path

import pytest
import torch

from testtime.scenes import CLASSES
from testtime.scenes.disk import Recipe, make, read_scenes
from testtime.scenes.groups import GROUPS, read_grouped

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")


def test_no_class_is_in_two_groups() -> None:
    members = [name for names in GROUPS.values() for name in names]
    assert len(set(members)) == len(members) == 31
    assert set(members) <= set(CLASSES)


def test_spaces_are_read_with_groups_as_their_classes(tmp_path: Path) -> None:
    names = make(tmp_path, [Recipe(seed, frames=2, size=(32, 32)) for seed in range(2)])
    grouped, plain = read_grouped(tmp_path, names[:1]), read_scenes(tmp_path, names[:1])
    assert grouped.classes == tuple(GROUPS)
    assert len(grouped) == len(plain) == 2
    ours, theirs = grouped[0].labels["semseg"], plain[0].labels["semseg"]
    group = {name: place for place, names in enumerate(GROUPS.values()) for name in names}
    for index, name in enumerate(plain.classes):
        if name in group:
            assert torch.all(ours[theirs == index] == group[name])
    assert len(read_grouped(tmp_path)) == 4
