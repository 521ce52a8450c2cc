"""``testtime serve``: a model that adapts, over HTTP."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from testtime.cli.options import (
    Commands,
    Device,
    Option,
    Seed,
    existing,
    new_folder,
    number,
    setting,
    url,
    whole,
)
from testtime.errors import need_packages

if TYPE_CHECKING:
    from testtime.serve import AlarmOptions, SessionOptions
    from testtime.serve.server import Configuration, Limits, ServedModel

__all__ = ["COMMANDS", "Adaptation", "Keeping", "Requests", "Secrets", "Shadows", "Showing", "serve"]

METHOD = "paf-kip"
MODEL = "source model: a name, a file of weights, timm:NAME, hf:NAME or package.module:function"
SOURCE = "folder of unlabelled images as in training, for guards and methods that learn from them"
DEADLINE = "seconds in which requests without a deadline are answered; adaptation is left out for it"
SHADOW = "methods that adapt beside the one that serves; their answers are judged, never served"
STATE = "folder of snapshots, audit log and configuration; temporary in the demo"
ALARM = "share of the requests that the shipped model answers too, for the alarm; 0: none"
FALSE = "probability, at most, of a false alarm in a whole stream"
RESIDENT = "streams whose state stays in memory; those that were used longest ago are on the disk alone"
IDLE = "seconds without a request after which a stream leaves the memory; its next request brings it back"
MIRROR = "folder to which acknowledged snapshots are copied, of any kind that fsspec knows"
SNAPSHOTS = "steps of a stream between two snapshots; 0: only at the end"
Set = Annotated[tuple[str, ...], Option("arguments of the method", metavar="KEY=VALUE", names=("--set",))]


@dataclass(frozen=True)
class Adaptation:
    """The model and how it adapts."""

    model: Annotated[str | None, Option(MODEL)] = None
    method: Annotated[str | None, Option("name of testtime methods (paf-kip; tent in the demo)")] = None
    settings: Set = ()
    guarded: Annotated[bool, Option("guard against collapse; this is the default")] = False
    no_guard: Annotated[bool, Option("serve the method without guards")] = False
    source: Annotated[str | None, Option(SOURCE, existing)] = None
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
        method = self.method or METHOD
        if ":" not in method:
            find_method(method)
        return Configuration(method, dict(map(setting, self.settings)), not self.no_guard)

    def opened(self) -> ServedModel:
        """Open the model and the source images.

        Raises:
            ValueError: there is no such model, or the images are not valid.
        """
        from testtime.serve.server import open_served

        sys.path.append(str(Path.cwd()))  # where the user's own module may lie
        assert self.model is not None
        images = (self.source, self.source_limit)
        return open_served(self.model, self.data, *images, device=self.device, seed=self.seed)


@dataclass(frozen=True)
class Requests:
    """Limits of requests."""

    deadline: Annotated[float | None, Option(DEADLINE, number())] = None
    max_body: Annotated[int, Option("MiB of a request")] = 16
    max_batch: Annotated[int, Option("samples in a request")] = 256
    rate: Annotated[float, Option("requests per second of a client, on average", number())] = 1000.0
    queue: Annotated[int, Option("requests that wait for the model")] = 64
    max_streams: Annotated[int, Option("streams, those that are on the disk alone included")] = 1000

    def limits(self) -> Limits:
        """Return the limits of the server."""
        from testtime.serve.server import Limits

        body, burst = self.max_body * 2**20, max(1, int(2 * self.rate))
        kept = {"queue": self.queue, "streams": self.max_streams}
        return Limits(body=body, batch=self.max_batch, rate=self.rate, burst=burst, **kept)


@dataclass(frozen=True)
class Keeping:
    """Which states are in memory, and where snapshots go."""

    snapshot_every: Annotated[int, Option(SNAPSHOTS, whole(0))] = 100
    resident: Annotated[int, Option(RESIDENT)] = 1024
    idle: Annotated[float | None, Option(IDLE, number(), "SECONDS")] = None
    mirror: Annotated[str | None, Option(MIRROR, url, "URL")] = None

    def check(self, folder: Path) -> None:
        """Raise ValueError or ImportError where snapshots in a folder cannot be copied to the mirror."""
        if self.mirror is not None:
            from testtime.serve.mirror import check_mirror

            check_mirror(self.mirror, folder)

    def options(self, model: ServedModel, streams: int, named: str | None) -> SessionOptions:
        """Return the settings of the session.

        Args:
            model: the model.
            streams: largest number of streams.
            named: name of the model, with which the session is resumed elsewhere; None where it has none.
        """
        from testtime.serve.server.opening import session_options

        kept = {"snapshot_every": self.snapshot_every, "resident": self.resident, "idle": self.idle or 0.0}
        return session_options(model, streams=streams, model=named, mirror=self.mirror, **kept)


@dataclass(frozen=True)
class Secrets:
    """Where the tokens are; the environment has them or names their files otherwise."""

    token_file: Annotated[str | None, Option("file of the clients' token (TESTTIME_TOKEN)", existing)] = None
    manage_token_file: Annotated[
        str | None, Option("file of the managers' token (TESTTIME_MANAGE_TOKEN)", existing)
    ] = None


@dataclass(frozen=True)
class Showing:
    """The demo."""

    demo: Annotated[
        bool, Option("serve the packaged digits model to a simulated camera, and open its page")
    ] = False
    no_browser: Annotated[bool, Option("do not open the page of the demo")] = False

    def check(self, adaptation: Adaptation, state: str | None) -> Adaptation:
        """Return what is served: in the demo, the digits model and TENT unless another method is named.

        Raises:
            ValueError: a model or folder is missing, or is given where the demo has its own.
        """
        if not self.demo:
            for name, given in (("--model", adaptation.model), ("--state", state)):
                if given is None:
                    raise ValueError(f"serve needs {name}; testtime serve --demo shows how it works without")
            if self.no_browser:
                raise ValueError("--no-browser belongs to --demo; the page is at the address that is printed")
            return adaptation
        from testtime.serve import demo

        for name, given in (("--model", adaptation.model), ("--source", adaptation.source)):
            if given is not None:
                raise ValueError(f"the demo has its own model and images; leave {name} or --demo out")
        return replace(adaptation, model=demo.MODEL, method=adaptation.method or demo.METHOD)


@dataclass(frozen=True)
class Shadows:
    """What runs beside the requests: methods in shadow, and the alarm."""

    shadow: Annotated[tuple[str, ...], Option(SHADOW)] = ()
    shadow_share: Annotated[float, Option("share of a stream's requests that they get", number(1))] = 0.05
    alarm_share: Annotated[float, Option(ALARM, number(1))] = 0.02
    alarm_probability: Annotated[float, Option(FALSE, number(1))] = 0.05

    def check(self) -> None:
        """Raise ValueError where there is no such method, or the share is 0."""
        from testtime.build import find_method

        for name in self.shadow:
            find_method(name)
        self.alarm(seed=0)
        if not self.shadow_share:
            raise ValueError("expected a --shadow-share above 0; leave --shadow out for no methods in shadow")

    def alarm(self, seed: int) -> AlarmOptions | None:
        """Return the options of the alarm; None where it is off."""
        from testtime.serve import AlarmOptions

        if not self.alarm_share:
            return None
        return AlarmOptions(probability=self.alarm_probability, share=self.alarm_share, seed=seed)

    def configurations(self, used: Configuration) -> dict[str, Configuration]:
        """Return the candidates by name, the one that serves first; empty without methods in shadow."""
        others = [name for name in self.shadow if name != used.method]
        found = {used.method: used, **{name: replace(used, method=name, options={}) for name in others}}
        return found if self.shadow else {}


def serve(
    *,
    adaptation: Adaptation,
    state: Annotated[str | None, Option(STATE, new_folder, "DIR")] = None,
    showing: Showing,
    host: Annotated[str, Option("address; tokens are needed unless it is this machine's own")] = "127.0.0.1",
    port: Annotated[int, Option("port; 0 takes a free one", whole(0))] = 8000,
    requests: Requests,
    keeping: Keeping,
    shadows: Shadows,
    secrets: Secrets,
    logs: Annotated[Literal["json", "text"], Option("form of the log lines on standard error")] = "json",
    command: Sequence[str] = (),
) -> int:
    """Serve a model that adapts to its inputs, over HTTP, until SIGTERM or Ctrl+C."""
    need_packages(fastapi="serve", uvicorn="serve", prometheus_client="serve", PIL="images")
    from testtime.models import MODELS
    from testtime.serve import demo
    from testtime.serve.page import ROUTER
    from testtime.serve.server import ServerOptions, Tokens, create_app, listening, run
    from testtime.serve.server.logs import write_logs
    from testtime.serve.server.opening import Kept, open_session, opened_alarms, shadowed
    from testtime.serve.server.options import check_access

    adaptation = showing.check(adaptation, state)
    tokens = Tokens.read(os.environ, secrets.token_file, secrets.manage_token_file)
    check_access(host, tokens)
    asked, limits = adaptation.configuration(), requests.limits()
    shadows.check()
    with ExitStack() as stack:
        found = stack.enter_context(listening(host, port))
        folder = Path(state or stack.enter_context(TemporaryDirectory(prefix="testtime-")))
        keeping.check(folder)
        model = adaptation.opened()
        named = adaptation.model if adaptation.model in MODELS else None
        options = keeping.options(model, requests.max_streams, named)
        if showing.demo:
            print("calibrating the guards on images of the training set", flush=True)
            model, options = demo.prepared(model, options)
        try:
            session, used = open_session(model, asked, folder, options)
        except RuntimeError as error:  # another server has the folder
            raise ValueError(str(error)) from error
        stack.enter_context(session)
        candidates, beside = shadows.configurations(used), dict[str, Any]()
        if alarm := shadows.alarm(model.seed):
            beside["alarms"] = stack.enter_context(opened_alarms(model, session, alarm))
        if candidates:
            print(f"preparing {len(candidates)} methods in shadow", flush=True)
            beside["shadow"] = stack.enter_context(shadowed(model, candidates, shadows.shadow_share))
        beside |= {"host": host, "deadline": requests.deadline, "kept": Kept(folder, asked)}
        server = ServerOptions(model, used, tokens, limits, candidates=candidates, **beside)
        write_logs(logs, logging.WARNING if showing.demo else logging.INFO)
        if used.guarded and not model.source:
            advice = "name a folder of images as in training: --source FOLDER"
            logging.getLogger("testtime.serve").warning("the guards are not calibrated; %s", advice)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{found.getsockname()[1]}"
        print(f"{model.name} with {used.method} at {address}, state in {folder}", flush=True)
        app = create_app(session, server, (ROUTER,))
        if showing.demo:
            open_page, ready = not showing.no_browser, lambda: app.state.service.ready
            stack.enter_context(demo.showing(address, tokens.use, browser=open_page, ready=ready))
        return run(app, found)


COMMANDS: Commands = {"serve": serve}
