"""Captions describe the visible objects in English."""

from __future__ import annotations

from testtime.scenes.captions import Thing, describe


def thing(instance: int, label: str, x0: float, x1: float, distance: float = 2.0, **more) -> Thing:
    room = more.pop("room", "bedroom")
    return Thing(instance, label, x0, x1, more.pop("area", 10 * (x1 - x0)), distance, room, **more)


def test_counts_the_largest_first():
    chairs = [thing(i, "chair", 10 * i, 10 * i + 9) for i in range(4)]
    text = describe([*chairs, thing(9, "bed", 0, 60), thing(10, "umbrella", 0, 2)], "bedroom")
    assert text.startswith("A bedroom with a bed, four chairs and an umbrella.")
    assert describe([], "office") == "An office."


def test_relations():
    bed, lamp = thing(1, "bed", 20, 60), thing(2, "lamp", 0, 15)
    tail = "A bedroom with a bed and a lamp. "
    assert describe([bed, lamp], "bedroom") == tail + "The lamp is to the left of the bed."
    assert (
        describe([bed, thing(2, "lamp", 60, 70)], "bedroom") == tail + "The lamp is to the right of the bed."
    )
    assert describe([bed, thing(2, "lamp", 30, 40, 2.6)], "bedroom") == tail + "The lamp is behind the bed."
    assert (
        describe([bed, thing(2, "lamp", 30, 40, 1.4)], "bedroom") == tail + "The lamp is in front of the bed."
    )
    assert describe([bed, thing(2, "lamp", 30, 40, 2.3)], "bedroom") == tail.strip()


def test_no_object_is_behind_a_picture():
    bed, picture = thing(1, "bed", 20, 60), thing(2, "picture", 30, 40, 4.0)
    assert describe([bed, picture], "bedroom") == "A bedroom with a bed and a picture."
    left = describe([bed, thing(2, "picture", 5, 15, 4.0)], "bedroom")
    assert left == "A bedroom with a bed and a picture. The picture is to the left of the bed."


def test_objects_that_are_not_unique_have_no_relations():
    text = describe([thing(1, "bed", 20, 60), thing(2, "chair", 0, 10), thing(3, "chair", 65, 70)], "bedroom")
    assert text == "A bedroom with a bed and two chairs."


def test_on():
    shelf = thing(1, "shelf", 0, 40)
    books = [thing(i, "book", 4 * i, 4 * i + 2, on=1) for i in (2, 3)]
    mug = thing(4, "mug", 20, 22, on=1)
    assert describe([shelf, *books, mug], "bedroom") == (
        "A bedroom with a shelf, two books and a mug. Two books and a mug are on the shelf."
    )
    two = describe([shelf, thing(5, "shelf", 50, 60), mug], "bedroom")
    assert two == "A bedroom with two shelves and a mug. A mug is on a shelf."
    assert describe([mug], "bedroom") == "A bedroom with a mug."  # on something out of sight


def test_through_a_door():
    text = describe([thing(1, "bed", 0, 40), thing(2, "tv", 50, 60, room="living room")], "bedroom")
    assert text == "A bedroom with a bed. Beyond it, a living room with a TV."
