"""``testtime serve``: a model that adapts, over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from testtime.cli.options import Commands, Device, Option, Seed, existing, new_folder, number, setting, whole
from testtime.errors import need_packages

if TYPE_CHECKING:
    from testtime.serve.server import Configuration, Limits, ServedModel

__all__ = ["COMMANDS", "Adaptation", "Requests", "Secrets", "serve"]

MIB = 2**20
SOURCE_BATCH = 64


@dataclass(frozen=True)
class Adaptation:
    """The model and how it adapts."""

    model: Annotated[
        str, Option("source model: a name, a file of weights, timm:NAME, hf:NAME or package.module:function")
    ]
    method: Annotated[str, Option("name of testtime methods")] = "paf-kip"
    settings: Annotated[
        tuple[str, ...], Option("arguments of the method", metavar="KEY=VALUE", names=("--set",))
    ] = ()
    guarded: Annotated[bool, Option("guard against collapse; this is the default")] = False
    no_guard: Annotated[bool, Option("serve the method without guards")] = False
    source: Annotated[
        str | None,
        Option(
            "folder of unlabelled images as in training, for guards and methods that learn from them",
            existing,
        ),
    ] = None
    source_limit: Annotated[int, Option("largest number of those images")] = 1024
    data: Annotated[str, Option("folder in which the weights of a named model are looked for")] = ".data"
    device: Device = "cpu"
    seed: Seed = 0

    def configuration(self) -> Configuration:
        """Return method, options and guards.

        Raises:
            ValueError: there is no such method, an option is no KEY=VALUE, or both --guarded and --no-guard are given.
        """
        from testtime.build import find_method
        from testtime.serve.server import Configuration

        if self.guarded and self.no_guard:
            raise ValueError("--guarded and --no-guard exclude each other; give one of them")
        if ":" not in self.method:
            find_method(self.method)
        return Configuration(self.method, dict(map(setting, self.settings)), not self.no_guard)

    def opened(self) -> ServedModel:
        """Open the model and the source images.

        Raises:
            ValueError: there is no such model, or the images are not valid.
        """
        from testtime.data import image_folder
        from testtime.models import open_model
        from testtime.serve.server import ServedModel

        found = open_model(self.model, self.data)
        network = found.model.to(self.device)
        name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in found.name)
        served = ServedModel(network, name, found.classes, found.side, seed=self.seed)
        if self.source is None:
            return served
        images = image_folder(self.source, channels=served.channels)
        rows = range(0, len(images), max(1, len(images) // self.source_limit))[: self.source_limit]
        parts = [rows[at : at + SOURCE_BATCH] for at in range(0, len(rows), SOURCE_BATCH)]
        batches = tuple(images.batch(part, served.size).to(self.device) for part in parts)
        return ServedModel(network, name, found.classes, found.side, source=batches, seed=self.seed)


@dataclass(frozen=True)
class Requests:
    """Limits of requests."""

    deadline: Annotated[
        float | None,
        Option(
            "seconds in which requests without a deadline are answered; adaptation is left out for it",
            number(),
        ),
    ] = None
    max_body: Annotated[int, Option("MiB of a request")] = 16
    max_batch: Annotated[int, Option("samples in a request")] = 256
    rate: Annotated[float, Option("requests per second of a client, on average", number())] = 1000.0
    queue: Annotated[int, Option("requests that wait for the model")] = 64
    max_streams: Annotated[int, Option("streams")] = 1000
    snapshot_every: Annotated[
        int, Option("steps of a stream between two snapshots; 0: only at the end", whole(0))
    ] = 100

    def limits(self) -> Limits:
        """Return the limits of the server."""
        from testtime.serve.server import Limits

        return Limits(
            body=self.max_body * MIB,
            batch=self.max_batch,
            rate=self.rate,
            burst=max(1, int(2 * self.rate)),
            queue=self.queue,
            streams=self.max_streams,
        )


@dataclass(frozen=True)
class Secrets:
    """Where the tokens are; the environment has them or names their files otherwise."""

    token_file: Annotated[str | None, Option("file of the clients' token (TESTTIME_TOKEN)", existing)] = None
    manage_token_file: Annotated[
        str | None, Option("file of the managers' token (TESTTIME_MANAGE_TOKEN)", existing)
    ] = None


def serve(
    *,
    adaptation: Adaptation,
    state: Annotated[str, Option("folder of snapshots, audit log and configuration", new_folder, "DIR")],
    host: Annotated[str, Option("address; tokens are needed unless it is this machine's own")] = "127.0.0.1",
    port: Annotated[int, Option("port; 0 takes a free one", whole(0))] = 8000,
    requests: Requests,
    secrets: Secrets,
    logs: Annotated[Literal["json", "text"], Option("form of the log lines on standard error")] = "json",
    command: Sequence[str] = (),
) -> int:
    """Serve a model that adapts to its inputs, over HTTP, until SIGTERM or Ctrl+C."""
    need_packages(fastapi="serve", uvicorn="serve", prometheus_client="serve", PIL="images")
    from testtime.serve.server.options import check_access
    from testtime.serve.server.tokens import Tokens

    tokens = Tokens.read(os.environ, secrets.token_file, secrets.manage_token_file)
    check_access(host, tokens)
    asked, limits = adaptation.configuration(), requests.limits()
    from testtime.models import MODELS
    from testtime.serve.server import ServerOptions, create_app, listening, open_session, run, session_options
    from testtime.serve.server.opening import Kept

    with listening(host, port) as found:
        model = adaptation.opened()
        named = adaptation.model if adaptation.model in MODELS else None
        options = session_options(
            model, snapshot_every=requests.snapshot_every, streams=limits.streams, model=named
        )
        session, used = open_session(model, asked, state, options)
        with session:
            server = ServerOptions(
                model, used, tokens, limits, host=host, deadline=requests.deadline, kept=Kept(state, asked)
            )
            _log(logs)
            if used.guarded and not model.source:
                advice = "name a folder of images as in training: --source FOLDER"
                logging.getLogger("testtime.serve").warning("the guards are not calibrated; %s", advice)
            shown = f"[{host}]" if ":" in host else host
            address = f"http://{shown}:{found.getsockname()[1]}"
            print(f"{model.name} with {used.method} at {address}, state in {Path(state)}", flush=True)
            return run(create_app(session, server), found)


def _log(form: str) -> None:
    """Write log lines to standard error."""
    from testtime.serve.server import JsonFormatter

    handler = logging.StreamHandler(sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else plain)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)


COMMANDS: Commands = {"serve": serve}
