"""Bearer tokens: one for clients, a second one for management. They come from the environment or from files."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__all__ = ["Role", "Tokens"]

Role = Literal["use", "manage"]
SHORTEST = 16  # characters
LONGEST = 4096
USE, MANAGE = "TESTTIME_TOKEN", "TESTTIME_MANAGE_TOKEN"
MAKE = 'python -c "import secrets; print(secrets.token_urlsafe(32))" makes one'


@dataclass(frozen=True)
class Tokens:
    """The two tokens of a server. The manager's token allows what the client's does, and management.

    Args:
        use: token of clients; None: everyone on this machine may use and manage the server.
        manage: token of managers; None beside a token of clients: no one may manage it.

    Raises:
        ValueError: a token is short, holds characters that a header does not carry, both are equal, or only the manager's is
            given.
    """

    use: str | None = field(default=None, repr=False)
    manage: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, token in (("client's", self.use), ("manager's", self.manage)):
            if token is None:
                continue
            if not SHORTEST <= len(token) <= LONGEST:
                raise ValueError(
                    f"the {name} token has {len(token)} characters, expected {SHORTEST} or more; {MAKE}"
                )
            if not token.isascii() or not token.isprintable() or " " in token:
                raise ValueError(f"expected letters, digits and marks of ASCII in the {name} token; {MAKE}")
        if self.manage is not None and self.use is None:
            raise ValueError(f"there is a token for managers and none for clients; set {USE} too")
        if self.manage is not None and self.use is not None and self.manage == self.use:
            raise ValueError(f"the tokens of clients and managers are equal; {MAKE}")

    @classmethod
    def read(
        cls, environ: Mapping[str, str], use_file: str | None = None, manage_file: str | None = None
    ) -> Tokens:
        """Read the tokens from files, or from the environment.

        Args:
            environ: environment: ``TESTTIME_TOKEN`` and ``TESTTIME_MANAGE_TOKEN``, or the names of files that hold them,
                ``TESTTIME_TOKEN_FILE`` and ``TESTTIME_MANAGE_TOKEN_FILE``.
            use_file: file of the client's token, in place of the environment's.
            manage_file: file of the manager's token, in place of the environment's.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: a token is not valid.
        """
        return cls(_found(environ, USE, use_file), _found(environ, MANAGE, manage_file))

    def role(self, authorization: str | None) -> Role | None:
        """Return what the value of the header ``Authorization`` allows; None: nothing.

        The comparison takes the same time whatever the token is.
        """
        if self.use is None:
            return "manage"
        scheme, _, given = (authorization or "").partition(" ")
        digest = _digest(given.strip())
        allowed: Role | None = None
        for name, token in (("use", self.use), ("manage", self.manage)):
            same = hmac.compare_digest(digest, _digest(token or ""))
            if same and token is not None:
                allowed = "manage" if name == "manage" else "use"
        return allowed if scheme.lower() == "bearer" else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _found(environ: Mapping[str, str], name: str, file: str | None) -> str | None:
    file = file or environ.get(f"{name}_FILE") or None
    if file is None:
        return environ.get(name) or None
    path = Path(file)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected one with a token; {MAKE}")
    if path.stat().st_size > LONGEST:
        raise ValueError(f"{path}: expected a token of at most {LONGEST} characters, found a larger file")
    try:
        token = path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a token as text, found other bytes; {MAKE}") from None
    if not token:
        raise ValueError(f"{path} is empty; {MAKE}")
    return token
