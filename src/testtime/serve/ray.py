"""A Ray Serve deployment: streams stick to replicas, and their states move through a folder that the replicas share.

It needs ``testtime[ray]``.

    from ray import serve
    from testtime.serve.ray import application

    handle = serve.run(application(build, "/shared/cameras", replicas=4))
    answer = handle.options(multiplexed_model_id="camera-1").remote(images).result()

``build`` is a function that returns the adapter; every replica calls it once, and holds the weights once and the states of its
streams. The identity of the stream is Ray's ``multiplexed_model_id``, by which Ray prefers the replica that has the stream.
What is guaranteed is said in :mod:`testtime.serve.leases`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.data import resized
from testtime.errors import missing_extra
from testtime.serve.gate import read_image
from testtime.serve.replica import DEFAULT, Replica, ReplicaOptions, Served

__all__ = ["application", "batch_of", "fields_of", "ray_serve"]

MOST = 64  # streams of a replica


def application(
    build: Callable[[], Adapter],
    directory: str | Path,
    *,
    replicas: int = 2,
    streams: int = MOST,
    options: ReplicaOptions = DEFAULT,
    name: str = "testtime",
    **settings: Any,
) -> Any:
    """Return an application for ``ray.serve.run``.

    A call of its handle takes a batch (NumPy array or tensor (N, ...), floating point), or PNG or JPEG files as bytes, one or a
    list, and ``learn=True``; it returns the fields of :func:`fields_of`. The errors of :meth:`Replica.submit` reach the
    caller. A call that was running in a replica that died fails with Ray's error; sent again, another replica answers it.

    Args:
        build: function that returns the adapter, the same in every replica; it is sent to the replicas.
        directory: folder that all hosts see under this path; its file system makes hard links, and shows a new file to
            all hosts at once.
        replicas: number of replicas.
        streams: largest number of streams in a replica; the one that was not used for longest leaves for a new one.
        options: settings of the replicas.
        name: name of the deployment.
        settings: further ones of ``ray.serve.deployment``, such as ``ray_actor_options``.

    Returns:
        a ``ray.serve.Application``.

    Raises:
        ImportError: Ray Serve is not installed.
        ValueError: ``streams`` is not at least 1, or larger than the sessions of the replicas may have.
    """
    serve = ray_serve()
    if not 1 <= streams <= options.session.streams:
        raise ValueError(
            f"streams is from 1 to {options.session.streams} (SessionOptions.streams), got {streams}"
        )
    shape, root = options.session.gate.shape, str(Path(directory).absolute())

    class Streams:
        """A replica of the deployment."""

        def __init__(self) -> None:
            self.replica = Replica(build(), root, options)

        @serve.multiplexed(max_num_models_per_replica=streams)
        async def seat(self, stream: str) -> Seat:
            return Seat(
                self.replica, stream
            )  # submit() loads the stream: Ray lets one stream after the other through here

        async def __call__(self, x: Any, learn: bool = True) -> dict[str, Any]:
            stream = serve.get_multiplexed_model_id()
            if not stream:
                raise ValueError(
                    "the request names no stream; call handle.options(multiplexed_model_id=stream).remote(x)"
                )
            batch = await asyncio.to_thread(batch_of, x, shape)
            self.replica.check(batch, stream)
            await self.seat(stream)
            served = await asyncio.to_thread(self.replica.submit, batch, stream, learn=learn)
            return fields_of(served)

        def __del__(self) -> None:
            if (replica := self.__dict__.pop("replica", None)) is not None:
                replica.close()

    return serve.deployment(Streams, name=name, num_replicas=replicas, **settings).bind()


class Seat:
    """A stream as Ray holds it for a replica: Ray deletes it when another stream needs the place.

    Args:
        replica: the replica.
        stream: name of the stream.
    """

    def __init__(self, replica: Replica, stream: str) -> None:
        self._replica: Replica | None = replica
        self._stream = stream

    def __del__(self) -> None:  # Ray calls it in a thread, and Python once more when it is freed
        replica, self._replica = self._replica, None
        if replica is not None:
            replica.leave(self._stream)


def batch_of(x: Any, shape: Sequence[int] | None = None) -> Tensor:
    """Return the samples of a request as a tensor.

    Args:
        x: batch (N, ...) as array or tensor, or PNG or JPEG files as bytes, one or a list.
        shape: shape (C, H, W) of a sample, C 1 or 3, to which images are brought; None: RGB in their own size, which is to be
            the same for all.

    Returns:
        samples (N, ...); images are float32 in [0, 1].

    Raises:
        TypeError: x is something else.
        ValueError: a file is damaged or no such image, the list is empty, or the sizes differ.
        ImportError: Pillow is not installed.
    """
    if isinstance(x, Tensor):
        return x
    if isinstance(x, np.ndarray):
        if x.dtype.kind not in "biuf":
            raise TypeError(f"expected an array of floating-point numbers, got {x.dtype}")
        return torch.tensor(x)  # a copy: arrays that come through Ray's memory are read-only
    files = [x] if isinstance(x, bytes) else x
    if not isinstance(files, list | tuple) or not all(isinstance(file, bytes) for file in files):
        raise TypeError(
            f"expected a batch as array or tensor, or PNG or JPEG files as bytes, got {type(x).__name__}"
        )
    if not files:
        raise ValueError("expected at least one image, got an empty list")
    if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3)):
        raise ValueError(
            f"expected a model of images (1 or 3, H, W), this one takes {tuple(shape)}; send an array"
        )
    images = [_fitted(file, shape) for file in files]
    if len({image.shape for image in images}) > 1:
        found = ", ".join(sorted({f"{i.shape[-1]} x {i.shape[-2]}" for i in images})[:5])
        raise ValueError(f"expected images of one size in a request, got {found}")
    return torch.stack(images)


def fields_of(served: Served) -> dict[str, Any]:
    """Return an answer as plain values and arrays.

    Returns:
        the fields of :class:`testtime.serve.Answer`, tensors as NumPy arrays, and ``acknowledged``, ``epoch`` and ``replica``
        of :class:`testtime.serve.replica.Served`.
    """
    found = {k: v.numpy() if isinstance(v, Tensor) else v for k, v in vars(served.answer).items()}
    return {**found, "acknowledged": served.acknowledged, "epoch": served.epoch, "replica": served.replica}


def _fitted(file: bytes, shape: Sequence[int] | None) -> Tensor:
    if shape is None:
        return read_image(file)
    return resized(read_image(file, channels=shape[0])[None], (shape[1], shape[2]))[0].clamp(0, 1)


def ray_serve() -> Any:
    """Return the module ``ray.serve``.

    Raises:
        ImportError: Ray Serve is not installed.
    """
    try:
        from ray import serve
    except ImportError as error:
        raise missing_extra("Ray Serve", "ray") from error
    return serve
