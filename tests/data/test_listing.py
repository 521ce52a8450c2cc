"""The lister of data folders, and the names in lists."""

import sys
from pathlib import Path

import pytest
from PIL import Image

from testtime.data.listing import files, folders, images, inside, natural, read_lines
from testtime.errors import DataError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def test_numbers_in_names_count_by_value() -> None:
    mixed = ["b", "a10", "a9", "10", "9", "a09", "a9.5", "B", "1000000000000000000000", ""]
    assert sorted(mixed, key=natural) == [
        "", "9", "10", "1000000000000000000000", "B", "a09", "a9", "a9.5", "a10", "b",
    ]  # fmt: skip


def test_files_at_any_depth_in_natural_order_without_hidden_ones(tmp_path: Path) -> None:
    put(tmp_path, "10/a.png", "2/b.PNG", "2/a.png", "2/x/c.png", "c.png", "notes.txt")
    put(
        tmp_path,
        "2/._a.png",
        "2/.ipynb_checkpoints/a.png",
        ".hidden/a.png",
        "__MACOSX/2/a.png",
        "@eaDir/a.png",
    )
    put(tmp_path, "2/Thumbs.db", "Desktop.ini", ".DS_Store")
    assert names(files(tmp_path, deep=True), tmp_path) == [
        "2/a.png", "2/b.PNG", "2/x/c.png", "10/a.png", "c.png", "notes.txt",
    ]  # fmt: skip
    assert names(files(tmp_path, {".png"}), tmp_path) == ["c.png"]
    assert names(folders(tmp_path), tmp_path) == ["2", "10"]
    assert names(images(tmp_path, deep=True), tmp_path)[:3] == ["2/a.png", "2/b.PNG", "2/x/c.png"]


def test_a_folder_named_like_an_image_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path, "a.png/b.png", "c.png")
    assert names(images(tmp_path), tmp_path) == ["c.png"]
    assert names(images(tmp_path, deep=True), tmp_path) == ["a.png/b.png", "c.png"]
    assert names(folders(tmp_path), tmp_path) == ["a.png"]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_broken_ones_named_and_circles_left(tmp_path: Path) -> None:
    put(tmp_path, "store/1.png", "store/2.png")
    set_ = tmp_path / "set"
    set_.mkdir()
    (set_ / "cat").symlink_to(tmp_path / "store")
    (set_ / "one.png").symlink_to(tmp_path / "store" / "1.png")
    (tmp_path / "store" / "round").symlink_to(set_)
    assert names(images(set_, deep=True), set_) == ["cat/1.png", "cat/2.png", "one.png"]
    (set_ / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (set_ / ".#lock.png").symlink_to("nobody@host")
    with pytest.raises(DataError, match=r"gone\.png: a link to .*nowhere\.png, which does not exist"):
        images(set_)


def test_images_that_pillow_does_not_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "1.jpg", "2.heic", "3.HEIC", "4.jfif")
    with pytest.warns(UserWarning, match=r"left out 2 of 4 images, .*\(\.heic\): 2\.heic, 3\.HEIC; convert"):
        assert names(images(tmp_path), tmp_path) == ["1.jpg", "4.jfif"]
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")  # as a plugin does
    assert len(images(tmp_path)) == 4


def test_missing_folders_are_named(tmp_path: Path) -> None:
    for list_of in (files, folders, images):
        with pytest.raises(DataError, match="absent: no such folder"):
            list_of(tmp_path / "absent")


@pytest.mark.parametrize(
    "name", ["../a", "a/../../b", "/etc/passwd", "C:\\a", "\\\\host\\a", "a\\..\\b", "..", "", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="is no file below this folder"):
        inside(Path("root"), name)


def test_names_inside_the_folder_are_accepted() -> None:
    for name in ("a.png", "b/..a.png", "b/a b.png", "./a.png", "b/..."):
        assert inside(Path("root"), name) == Path("root") / name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lists_are_read_with_all_encodings_and_line_endings(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(end.join(["a.png 1  ", "", "  b é.png 2\t", ""]).encode(encoding))
    assert read_lines(path, "names") == ["a.png 1", "b é.png 2"]


def test_invalid_lists_are_named(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    with pytest.raises(DataError, match=r"list\.txt: no such file; expected names"):
        read_lines(path, "names")
    path.write_bytes(b"\xef\xbb\xbf \r\n")
    with pytest.raises(DataError, match="found an empty file"):
        read_lines(path, "names")
    path.write_bytes(b"\x89PNG\xff")
    with pytest.raises(DataError, match="expected names as text in UTF-8"):
        read_lines(path, "names")
