"""Transport identities: one CURVE key pair per process, made on first use; only its owner can read the secret half."""

from __future__ import annotations

import contextlib
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.core.errors import InputError
from testbed.core.whole import read_whole, write_whole

_MAX_BYTES = 1 << 12
"""Largest size of a key's file."""


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
    from zmq.utils import z85

    try:
        data = read_whole(path, _MAX_BYTES).strip()
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    if len(data) != 40:
        raise InputError(f"{path}: {len(data)} characters, accepted: one Z85 key of 40")
    try:
        z85.decode(data)
    except (KeyError, struct.error) as exc:  # a character, or a value, that the code does not have
        raise InputError(f"{path}: no key in Z85; copy it again from its machine") from exc
    return data.decode()


def secure(socket: Any, identity: Identity | None, server: str | None = None, only: str | None = None) -> None:
    """Set CURVE on a ZeroMQ socket: as server (`server` None), or as client of the named peer. None identity: plain.

    `only`: the one peer that a server admits; None: everybody in the lab.
    """
    if identity is None:
        return
    socket.curve_secretkey = identity.secret.encode()
    socket.curve_publickey = identity.public.encode()
    if server is None:
        socket.curve_server = True
        if only is not None:
            socket.zap_domain = only.encode()
    else:
        socket.curve_serverkey = identity.known[server].encode()


def start_authenticator(context: Any, identity: Identity | None) -> Any:
    """Start ZAP on a ZeroMQ context so that its CURVE servers admit the identity's known keys only, and those in the
    domain of a name only that one's.

    Returns the running authenticator (call `.stop()` before terminating the context), or None without identity.
    A refused client gets no answer and no error, so clients must use timeouts.
    """
    if identity is None:
        return None
    from zmq.auth.thread import ThreadAuthenticator

    known = {name: key.encode() for name, key in identity.known.items()}

    class _Known:
        def callback(self, domain: str, key: bytes) -> bool:
            return key in known.values() if domain == "*" else key == known.get(domain)

    auth = ThreadAuthenticator(context)
    auth.start()
    for domain in ("*", *known):
        auth.configure_curve_callback(domain, credentials_provider=_Known())
    return auth
