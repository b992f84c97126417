"""Transport identities: one CURVE key pair per process, made on first use; only its owner can read the secret half."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.core.errors import InputError
from testbed.core.whole import write_whole


@dataclass(frozen=True, slots=True)
class Identity:
    """A process's own key pair and the public keys of everyone in its lab (all Z85 text)."""

    name: str
    public: str
    secret: str = field(repr=False)
    known: dict[str, str]
    """name → public key."""


def make(folder: Path, name: str) -> None:
    """Make the key pair `name` in `folder` unless it is there: `<name>.secret` (0600) and `<name>.public`.

    If only the secret half exists, the public half is written again. If only the public half exists, the pair was made
    on another machine, where `name` runs: raises InputError.
    """
    import zmq

    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    secret_path, public_path = folder / f"{name}.secret", folder / f"{name}.public"
    if secret_path.exists():
        if not public_path.exists():
            write_whole(public_path, _public(secret_path) + "\n", private=False)
        return
    if public_path.exists():
        raise InputError(
            f"{public_path}: here without {secret_path.name}, so this pair was made on another machine; "
            f"to run {name!r} here, remove it and make a pair of its own"
        )
    _, secret = zmq.curve_keypair()
    with contextlib.suppress(FileExistsError):  # another process may have made it first
        write_whole(secret_path, secret.decode() + "\n", fresh=True)
    # In any case, the public half exists when this function returns.
    write_whole(public_path, _public(secret_path) + "\n", private=False)


def _public(secret_path: Path) -> str:
    import zmq

    return str(zmq.curve_public(_key(secret_path).encode()).decode())


def load(folder: Path, name: str, others: list[str]) -> Identity:
    """Load `name`'s pair and the public keys of `others`; raises InputError naming the missing or exposed file,
    or two files that do not form a pair."""
    secret_path = folder / f"{name}.secret"
    if not secret_path.exists():
        raise InputError(
            f"{secret_path}: no transport key for {name!r}; make it with `testbed keygen-certs --lab … {name}`"
        )
    if secret_path.stat().st_mode & 0o077:
        raise InputError(
            f"{secret_path}: readable by others (mode {secret_path.stat().st_mode & 0o777:o}); accepted: 600"
        )
    known: dict[str, str] = {}
    for other in dict.fromkeys([name, *others]):
        path = folder / f"{other}.public"
        if not path.exists():
            raise InputError(
                f"{path}: no public key of {other!r}; copy it from its machine, "
                f"or make it there with `testbed keygen-certs --lab … {other}`"
            )
        known[other] = _key(path)
    if _public(secret_path) != known[name]:
        raise InputError(
            f"{folder / f'{name}.public'} does not belong to {secret_path}: it was overwritten by another machine's; "
            f"remove it and run `testbed keygen-certs --lab … {name}`"
        )
    return Identity(name=name, public=known[name], secret=_key(secret_path), known=known)


def _key(path: Path) -> str:
    text = path.read_text().strip()
    if len(text) != 40:
        raise InputError(f"{path}: {len(text)} characters, accepted: one Z85 key of 40")
    return text


def secure(socket: Any, identity: Identity | None, server: str | None = None) -> None:
    """Set CURVE on a ZeroMQ socket: as server (`server` None), or as client of the named peer. None identity: plain."""
    if identity is None:
        return
    socket.curve_secretkey = identity.secret.encode()
    socket.curve_publickey = identity.public.encode()
    if server is None:
        socket.curve_server = True
    else:
        socket.curve_serverkey = identity.known[server].encode()


def start_authenticator(context: Any, identity: Identity | None) -> Any:
    """Start ZAP on a ZeroMQ context so that its CURVE servers admit the identity's known keys only.

    Returns the running authenticator (call `.stop()` before terminating the context), or None without identity.
    A refused client gets no answer and no error, so clients must use timeouts.
    """
    if identity is None:
        return None
    from zmq.auth.thread import ThreadAuthenticator

    allowed = {key.encode() for key in identity.known.values()}

    class _Known:
        def callback(self, domain: str, key: bytes) -> bool:
            return key in allowed

    from zmq.utils import z85

    allowed = {z85.decode(k) for k in allowed} | allowed
    auth = ThreadAuthenticator(context)
    auth.start()
    auth.configure_curve_callback("*", credentials_provider=_Known())
    return auth
