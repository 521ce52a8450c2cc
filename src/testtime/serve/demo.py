"""A simulated camera whose images drift: handwritten digits in changing weather, sent to a server as a real one would."""

from __future__ import annotations

import logging
import threading
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, final

import numpy as np
import torch
from torch import Tensor

from testtime.corruptions import corrupt
from testtime.data import embedded
from testtime.serve.gate import png_bytes

if TYPE_CHECKING:
    from testtime.serve.options import SessionOptions
    from testtime.serve.server import ServedModel

__all__ = ["METHOD", "MODEL", "SCENES", "Camera", "Frames", "Scene", "frames", "prepared", "showing"]

MODEL, METHOD, STREAM = "digits-cnn", "tent", "camera"
SOURCE_BATCH = 64
HISTORY = 2048  # requests that the page shows from the beginning


@dataclass(frozen=True)
class Scene:
    """A stretch of the camera's day.

    Args:
        name: name for people.
        corruption: name of the corruption, empty for clear images.
        severity: its severity, 1 to 5.
        unknown: share of the images that show no digit.
        stuck: whether the camera repeats one image.
    """

    name: str
    corruption: str = ""
    severity: int = 0
    unknown: float = 0.0
    stuck: bool = False


SCENES = (
    Scene("clear"),
    Scene("light fog", "fog", 2),
    Scene("fog", "fog", 4),
    Scene("fog with unknown objects", "fog", 4, unknown=0.3),
    Scene("dusk: noise of the sensor", "gaussian_noise", 3),
    Scene("night: more noise", "gaussian_noise", 5),
    Scene("the camera stands still", "gaussian_noise", 5, stuck=True),
    Scene("low contrast", "contrast", 4),
    Scene("the lens is out of focus", "defocus_blur", 4),
    Scene("clear again"),
)


@dataclass(frozen=True)
class Frames:
    """Images that the camera takes at once.

    Attributes:
        images: (N, 3, 32, 32) in [0, 1].
        labels: (N,) digits, -1 where none is shown. They are not sent.
        scene: the scene.
    """

    images: Tensor
    labels: Tensor
    scene: Scene


def frames(batch: int = 16, each: int = 40, seed: int = 0) -> Iterator[Frames]:
    """Yield the images of the camera, one scene after the other, without an end.

    Args:
        batch: number of images at once.
        each: number of batches of a scene.
        seed: random seed of the order and of the corruptions.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.
    """
    _, test, unknown = embedded()
    rng = np.random.default_rng(seed)
    for day in range(10**9):
        for scene in SCENES:
            for _ in range(each):
                rows = rng.integers(len(test), size=batch)
                if scene.stuck:
                    rows[:] = day % len(test)
                images, labels = test.batch(rows), test.targets(rows).clone()
                foreign = np.flatnonzero(rng.random(batch) < scene.unknown)
                if len(foreign):
                    images[foreign] = unknown.batch(rng.integers(len(unknown), size=len(foreign)))
                    labels[foreign] = -1
                if scene.corruption:
                    seeds = np.zeros(batch, np.int64) if scene.stuck else rng.integers(2**31, size=batch)
                    images = corrupt(images, scene.corruption, scene.severity, seeds=torch.from_numpy(seeds))
                yield Frames(images, labels, scene)


@final
class Camera:
    """A thread that sends the images of the simulated camera to a server, as PNG files, until it is closed.

    Args:
        send: function that sends PNG files, such as ``partial(client.send_image, stream="camera")``.
        rate: images per second.
        source: images to send, as :func:`frames` yields them.
        failed: function of an exception of ``send``; the camera then stops.

    Raises:
        ValueError: rate is not above 0.
    """

    def __init__(
        self,
        send: Callable[[list[bytes]], Any],
        rate: float = 64.0,
        source: Iterator[Frames] | None = None,
        failed: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate is a number of images per second above 0, got {rate}")
        self._send, self._rate, self._failed = send, rate, failed
        self._source = frames() if source is None else source
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="testtime-camera", daemon=True)
        self.sent = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        for taken in self._source:
            try:
                self._send([png_bytes(image) for image in taken.images])
            except Exception as error:  # noqa: BLE001 - handed to the caller, who decides
                if not self._over.is_set():
                    self._failed(error)
                return
            self.sent += len(taken.images)
            if self._over.wait(len(taken.images) / self._rate):
                return


def prepared(model: ServedModel, options: SessionOptions) -> tuple[ServedModel, SessionOptions]:
    """Return the model with the digits that it was trained on as source images, and settings that keep more for the page.

    Raises:
        ImportError: scikit-learn or Pillow is not installed.
    """
    train, rows = embedded().train, range(0, len(embedded().train), SOURCE_BATCH)
    source = tuple(train.batch(range(at, min(at + SOURCE_BATCH, len(train)))) for at in rows)
    gate = replace(options.gate, pixels=True)  # the images are public
    return replace(model, source=tuple(map(model.placed, source))), replace(
        options, gate=gate, history=HISTORY
    )


@contextmanager
def showing(
    address: str, token: str | None = None, *, browser: bool = True, ready: Callable[[], bool] = lambda: True
) -> Iterator[Camera]:
    """Send the images of the camera to a server while the context lasts, and open its page.

    Args:
        address: address of the server; it may begin to answer later.
        token: the client's token.
        browser: whether the page is opened in the browser.
        ready: whether the server takes requests; a camera that it refuses otherwise says nothing.
    """
    from testtime.serve import Client

    if browser:  # one in a terminal would keep this thread
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    def failed(error: Exception) -> None:
        if ready():
            logging.getLogger("testtime.serve").warning("the camera stopped: %s", error)

    with (
        Client(address, token=token, retries=1) as client,
        Camera(partial(client.send_image, stream=STREAM), failed=failed) as camera,
    ):
        yield camera
