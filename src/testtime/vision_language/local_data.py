"""The data of the studies on local tokens: textures with defects, rooms with anomalies, walks, objects in rooms.

Each function is a unit: it writes ``data.safetensors`` with a part to test on and a part to teach a probe on, of other textures
or houses. Images are uint8 (N, 3, H, W). Of the part to teach on, "targets" are indices into the prompts that the unit returns,
for each image, or for each cell of a grid of 14 x 14; -1 for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.corruptions.defects import DEFECTS, add_defects
from testtime.data import textures
from testtime.errors import DataError
from testtime.files import write_tensors
from testtime.scenes.furniture.model import CLASSES, STRUCTURE
from testtime.vision_language.local_tokens import ABNORMAL, NORMAL, state_prompts

if TYPE_CHECKING:
    from testtime.experiments import Workspace

__all__ = ["FILE", "GRID", "ROOMS", "cells_of", "make_prompts", "make_rooms", "make_textures", "make_walks"]

FILE = "data.safetensors"
GRID = 14
"""Cells of a side of the grid of targets."""
ROOMS = {
    "living": "living room",
    "bed": "bedroom",
    "bath": "bathroom",
    "kitchen": "kitchen",
    "study": "study",
}
"""Names of the kinds of rooms."""
TIDY = ("tidy {}", "ordinary {}", "{} with its usual furniture")
STRANGE = ("{} with a foreign object", "{} with an object out of place", "{} with something strange")
COVERED = 0.25
"""Least share of a cell that a defect covers where it is a target."""
TEACH = 500
"""First seed of the houses to teach on."""
FURNITURE = tuple(c for c in CLASSES[len(STRUCTURE) : CLASSES.index("rug")] if c != "lamp")


def cells_of(masks: Tensor) -> Tensor:
    """Return the share of each cell of the grid that masks (N, H, W) cover, (N, 14 * 14)."""
    return F.adaptive_avg_pool2d(masks.float()[:, None], GRID).flatten(1)


def levels(image: np.ndarray) -> Tensor:
    """An image (H, W, 3) as uint8 (3, H, W)."""
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def states(names: Sequence[str], normal: Sequence[str], abnormal: Sequence[str]) -> list[list[str]]:
    """Prompts for normal and abnormal images of each name, one after the other."""
    return [state_prompts(name, some) for name in names for some in (normal, abnormal)]


def make_textures(work: Workspace) -> dict[str, Any]:
    """Write textures with and without a defect: of every second class to test on, of the others to teach on."""
    p, data = work.parameters, textures(work.places["data"])
    classes, parts = data.classes, dict[str, Tensor]()
    kinds: list[str] = []
    for part, own in (("test", classes[1::2]), ("teach", classes[::2])):
        groups = [_of_class(data, name, p["each"], p["seed"]) for name in own]
        clean = torch.cat([data.batch(indices) for indices in groups])
        seeds = [p["seed"] * 100_000 + int(i) for indices in groups for i in indices]
        changed, masks = torch.zeros_like(clean), torch.zeros(len(clean), *clean.shape[2:], dtype=torch.bool)
        chosen = [DEFECTS[i % len(DEFECTS)] for i in range(len(clean))]
        for kind in DEFECTS:
            which = [i for i, k in enumerate(chosen) if k == kind]
            changed[which], masks[which] = add_defects(clean[which], kind, [seeds[i] for i in which])
        name = torch.arange(len(own)).repeat_interleave(p["each"])
        parts |= _anomalies(part, clean, changed, masks, name)
        kinds = chosen if part == "test" else kinds
    write_tensors(work.folder / FILE, parts)
    named = {
        part: [f"{n} texture" for n in own]
        for part, own in (("test", classes[1::2]), ("teach", classes[::2]))
    }
    return {
        "kinds": kinds,
        "prompts": states(named["test"], NORMAL, ABNORMAL),
        "teach": states(named["teach"], NORMAL, ABNORMAL),
    }


def _of_class(data: Any, name: str, count: int, seed: int) -> list[int]:
    """Indices of some images of a class, drawn without repetition."""
    found = np.flatnonzero(data.labels == data.classes.index(name))
    if len(found) < count:
        raise DataError(f"{data.name}: expected at least {count} images of {name}, found {len(found)}")
    return np.random.default_rng([seed, data.classes.index(name)]).permutation(found)[:count].tolist()


def _anomalies(part: str, clean: Tensor, changed: Tensor, masks: Tensor, name: Tensor) -> dict[str, Tensor]:
    """Tensors of a part: images without and then with an anomaly; to teach on, the state of each cell of their names."""
    both = torch.cat([clean, changed])
    images = both if both.dtype == torch.uint8 else both.mul(255).round().byte()
    whole = torch.cat([torch.zeros_like(masks), masks])
    names = torch.cat([name, name])
    found = {f"{part}.images": images, f"{part}.masks": whole.byte(), f"{part}.names": names}
    if part == "teach":
        covered = cells_of(whole)
        targets = 2 * names[:, None] + (covered >= COVERED).long()
        targets[(covered > 0) & (covered < COVERED)] = -1
        found["teach.targets"] = targets
    return found


def make_rooms(work: Workspace) -> dict[str, Any]:
    """Write views of rooms without and with an anomaly, rendered from the same place."""
    from testtime.scenes import Renderer, generate_house
    from testtime.scenes.anomalies import ANOMALIES, add_anomaly

    p, parts = work.parameters, dict[str, Tensor]()
    kinds, size = list[str](), (p["side"], p["side"])
    for part, first in (("test", 0), ("teach", TEACH)):
        clean, changed, masks, names = [], [], [], []
        for h in range(p["houses"]):
            house = generate_house(first + h)
            plain = Renderer(house)
            for k, camera in enumerate(house.cameras(p["views"], p["seed"])):
                kind = ANOMALIES[k % 2]
                found = add_anomaly(house, camera, kind, p["seed"])
                if found is None:
                    continue
                frame = Renderer(found.house).frame(camera, size, boxes=False)
                clean.append(levels(plain.frame(camera, size, boxes=False).rgb))
                changed.append(levels(frame.rgb))
                masks.append(torch.from_numpy(frame.instance == found.instance))
                names.append(list(ROOMS).index(house.rooms[camera.room].kind))
                kinds += [kind] if part == "test" else []
            work.progress(h + 1 + p["houses"] * (part == "teach"), 2 * p["houses"])
        images = torch.stack(clean), torch.stack(changed)
        parts |= _anomalies(part, *images, torch.stack(masks), torch.tensor(names))
    write_tensors(work.folder / FILE, parts)
    prompts = states(list(ROOMS.values()), TIDY, STRANGE)
    return {"kinds": kinds, "prompts": prompts, "teach": prompts}


def make_walks(work: Workspace) -> dict[str, Any]:
    """Write walks that visit one room of a house several times, and single frames of other houses to teach rooms on."""
    from testtime.scenes import Renderer, generate_house
    from testtime.scenes.walks import room_walk

    p = work.parameters
    size, seed = (p["side"], p["side"]), 0
    videos, inside, seen = list[Tensor](), list[Tensor](), list[Tensor]()
    kinds, segments = list[int](), list[list[list[int]]]()
    while len(videos) < p["videos"]:
        house = generate_house(seed)
        rooms = [r.index for r in house.rooms]
        seed += 1
        if len({r.kind for r in house.rooms}) < 3:
            continue
        visits = 1 + len(videos) % p["visits"]
        walk = room_walk(house, rooms[len(videos) % len(rooms)], p["frames"], p["seed"], visits)
        render = Renderer(house)
        videos.append(torch.stack([levels(render.frame(c, size, boxes=False).rgb) for c in walk.cameras]))
        inside.append(torch.from_numpy(walk.inside))
        seen.append(torch.tensor([list(ROOMS).index(house.rooms[c.room].kind) for c in walk.cameras]))
        kinds.append(list(ROOMS).index(walk.kind))
        segments.append([list(s) for s in walk.segments])
        work.progress(len(videos), p["videos"] + p["houses"])
    frames, targets = [], []
    for h in range(p["houses"]):
        house = generate_house(TEACH + h)
        render = Renderer(house)
        for camera in house.cameras(p["views"], p["seed"]):
            frames.append(levels(render.frame(camera, size, boxes=False).rgb))
            targets.append(list(ROOMS).index(house.rooms[camera.room].kind))
        work.progress(p["videos"] + h + 1, p["videos"] + p["houses"])
    parts = {"test.videos": torch.stack(videos), "test.inside": torch.stack(inside).byte()}
    parts |= {"test.rooms": torch.stack(seen)}
    parts |= {"teach.images": torch.stack(frames), "teach.targets": torch.tensor(targets)}
    write_tensors(work.folder / FILE, parts)
    prompts = [[f"a photo of a {name}."] for name in ROOMS.values()]
    return {"classes": kinds, "segments": segments, "prompts": prompts, "teach": prompts}


def make_prompts(work: Workspace) -> dict[str, Any]:
    """Write views of rooms with the mask and the word of one object each, and views to teach classes of cells on."""
    from testtime.scenes import CLASSES, Renderer, generate_house

    p, size = work.parameters, (work.parameters["side"], work.parameters["side"])
    names = [*FURNITURE, *STRUCTURE]
    table = torch.full((256,), -1)
    for i, name in enumerate(names):
        table[CLASSES.index(name)] = i
    images, masks, words, frames, targets = [], [], list[str](), [], []
    for part, first in (("test", 0), ("teach", TEACH)):
        for h in range(p["houses"]):
            house = generate_house(first + h)
            render = Renderer(house)
            for camera in house.cameras(p["views"], p["seed"]):
                frame = render.frame(camera, size, boxes=False)
                if part == "teach":
                    frames.append(levels(frame.rgb))
                    rows = (
                        (np.arange(GRID) * 2 + 1) * size[0] // (2 * GRID)
                    )  # the class at the centre of a cell
                    seen = frame.semantic[np.ix_(rows, rows)].astype(np.int64)
                    targets.append(table[torch.from_numpy(seen)].flatten())
                    continue
                shares = {n: (frame.semantic == CLASSES.index(n)).mean() for n in FURNITURE}
                fit = {n: s for n, s in shares.items() if 0.03 <= s <= 0.4}
                if fit:
                    word = max(fit, key=lambda n: fit[n])
                    images.append(levels(frame.rgb))
                    masks.append(torch.from_numpy(frame.semantic == CLASSES.index(word)))
                    words.append(word)
            work.progress(h + 1 + p["houses"] * (part == "teach"), 2 * p["houses"])
    parts = {"test.images": torch.stack(images), "test.masks": torch.stack(masks).byte()}
    parts |= {"teach.images": torch.stack(frames), "teach.targets": torch.stack(targets)}
    write_tensors(work.folder / FILE, parts)
    return {"words": words, "background": list(STRUCTURE), "prompts": [], "teach": [[n] for n in names]}
