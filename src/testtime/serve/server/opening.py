"""The session of a server, as its directory holds it or as the command asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from errno import ENOENT
from pathlib import Path
from typing import Any

from testtime.data import image_folder
from testtime.files import damaged, read_json, write_json
from testtime.methods import Source
from testtime.models import open_model
from testtime.serve import AlarmOptions, GateOptions, Session, SessionOptions
from testtime.serve.alarms import StreamAlarms
from testtime.serve.server.served import Configuration, ServedModel, channels_of
from testtime.serve.shadow import Shadow

__all__ = ["Kept", "open_served", "open_session", "opened_alarms", "session_options", "shadowed"]

ADVICE = "delete it, and the session gets the configuration of the command"
NAME = "configuration.json"
SOURCE_BATCH = 64  # source images that an adapter gets at once
SHAPE: dict[str, Any] = {"method": str, "options": dict, "guarded": bool}


class Kept:
    """The file in the directory of a session that keeps its configuration, so that a restart continues with it.

    It holds what the command asked for, the configuration in use with its hash and, while it is changed, the next one.

    Args:
        directory: directory of the session.
        asked: configuration of the command.
    """

    def __init__(self, directory: str | Path, asked: Configuration) -> None:
        self.path, self.asked = Path(directory) / NAME, asked

    def read(self, number: str) -> Configuration | None:
        """Return the configuration of the session.

        Args:
            number: hash of the session's configuration.

        Returns:
            the configuration; None where the file is missing, or the command asks for another one than before.

        Raises:
            DataError: the file is damaged.
        """
        if not self.path.exists():
            return None
        content = read_json(self.path, ADVICE, {"asked": SHAPE, "used": SHAPE, "hash": str})
        with damaged(self.path, ADVICE):
            if Configuration(**content["asked"]) != self.asked:
                return None
            used = content["used"] if number == content["hash"] else content.get("next")
            return None if used is None else Configuration(**used)

    def write(self, number: str, used: Configuration, following: Configuration | None = None) -> None:
        """Write the configuration in use, and the one that follows while it is changed.

        Args:
            number: hash of the session's configuration.
            used: the configuration.
            following: the next one.

        Raises:
            OSError: the disk is full or read-only.
        """
        if not (self.path.parent / "session.json").exists():
            raise FileNotFoundError(ENOENT, "the folder of the session is gone", str(self.path.parent))
        content = {"asked": asdict(self.asked), "used": asdict(used), "hash": number}
        write_json(self.path, content | ({} if following is None else {"next": asdict(following)}))


def open_served(
    model: str,
    data: str,
    source: str | None = None,
    limit: int = 1024,
    device: str = "cpu",
    seed: int = 0,
) -> ServedModel:
    """Open a model, and images of its training for guards and methods that learn from them.

    Args:
        model: name of a model, file of weights, "timm:NAME", "hf:NAME" or "package.module:function".
        data: folder in which the weights of a named model are looked for.
        source: folder of unlabelled images; None for none.
        limit: largest number of these images, evenly spread.
        device: device of model and images.
        seed: random seed of the methods.

    Raises:
        ValueError: there is no such model, or the images are not valid.
    """
    found = open_model(model, data)
    network = found.model.to(device)
    channels = channels_of(network)
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in found.name)
    served = ServedModel(network, name, found.classes, found.side, channels, seed=seed)
    if source is None:
        return served
    images = image_folder(source, channels=channels)
    rows = range(0, len(images), max(1, len(images) // limit))[:limit]
    parts = [rows[at : at + SOURCE_BATCH] for at in range(0, len(rows), SOURCE_BATCH)]
    batches = tuple(images.batch(part, served.size).to(device) for part in parts)
    return replace(served, source=batches)


def opened_alarms(model: ServedModel, session: Session, options: AlarmOptions) -> StreamAlarms:
    """Return the alarms on shadow traffic, for a context.

    Args:
        model: the model.
        session: session that serves it.
        options: options of the alarm.
    """
    reference = StreamAlarms.reference_of(model.network, session.adapter, model.source)
    return StreamAlarms(reference, options)


def shadowed(model: ServedModel, candidates: Mapping[str, Configuration], share: float) -> Shadow:
    """Build methods that adapt in shadow, for a context.

    Args:
        model: the model.
        candidates: configurations by name.
        share: share of a stream's requests that they get.

    Raises:
        ValueError: a method does not work with this model.
    """
    built = {name: model.build(one) for name, one in candidates.items()}
    return Shadow(built, Source(model.network), share=share)


def open_session(
    model: ServedModel, asked: Configuration, directory: str | Path, options: SessionOptions | None = None
) -> tuple[Session, Configuration]:
    """Begin the session of a directory, or continue it.

    A session that was given another configuration while it served (``PUT /configuration``) continues with that one, as long as
    the command asks for the same as before; a command that asks for another one changes it.

    Args:
        model: the model.
        asked: configuration of the command.
        directory: directory of the session.
        options: settings of the session; by default the shape of the samples is that of the model.

    Returns:
        the session, and the configuration that it serves.

    Raises:
        ValueError: a configuration is not valid, or the directory belongs to another model.
        RuntimeError: another process holds the directory.
        DataError: a file of the directory is damaged.
    """
    kept, options = Kept(directory, asked), options or session_options(model)
    if not (Path(directory) / "session.json").exists():
        session = Session(model.build(asked), directory, options=options)
        kept.write(session.configuration, asked)
        return session, asked
    session = Session.resume(model.network, directory, options=options)
    try:
        used = kept.read(session.configuration)
        if used is None:
            session.configure(model.build(asked))
            used = asked
        kept.write(session.configuration, used)
    except BaseException:
        session.close()
        raise
    return session, used


def session_options(model: ServedModel, /, **settings: Any) -> SessionOptions:
    """Return the settings of a session that takes the images of a model.

    Args:
        model: the model.
        settings: further ones of :class:`testtime.serve.SessionOptions`.
    """
    shape = None if model.side is None else (model.channels, model.side, model.side)
    return SessionOptions(gate=GateOptions(shape=shape), **settings)
