"""Writes a lab file from the devices that answer on this machine."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from testbed import config
from testbed.config import toml_text
from testbed.core import registry
from testbed.core.errors import DeviceError, InputError
from testbed.core.radio import FoundRadio
from testbed.core.whole import write_whole

ROLES = ("alice", "bob", "eve")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
_BELOW_FULL_DB = 10.0
"""By how much the transmit gain is below its maximum, so that a receiver at the end of a cable is not overloaded."""
_RX_SHARE = 0.5
"""Receive gain as a share of its range; `testbed doctor` then names the value that the link needs."""

Ask = Callable[[str, str, Sequence[str]], str]
"""(question, proposed answer, accepted answers) → the answer."""


@dataclass(frozen=True, slots=True)
class Seen:
    """All radios and ports that were found."""

    radios: list[tuple[str, FoundRadio]]
    """(driver, device)."""
    ports: list[str]
    """Serial ports; a surface's board may be at one of them."""
    untried: dict[str, str]
    """Driver → the reason why it could not search."""


def look(addresses: Sequence[str] = ()) -> Seen:
    """Ask every installed driver which devices answer; `addresses`: further places to search."""
    radios: list[tuple[str, FoundRadio]] = []
    untried: dict[str, str] = {}
    for name, driver in sorted(registry.usable("radios").items()):
        try:
            radios += [(name, one) for one in driver.discover(addresses)]
        except DeviceError as exc:
            untried[name] = exc.detail
    return Seen(sorted(radios, key=lambda r: (not r[1].can_transmit, r[1].serial)), _ports(), untried)


def _ports() -> list[str]:
    """Return the serial ports to which a device is connected."""
    from serial.tools import list_ports

    return sorted(port.device for port in list_ports.comports() if port.vid is not None)


def assign(seen: Seen, ask: Ask) -> dict[str, tuple[str, FoundRadio]]:
    """Return role → (driver, device); a device may be left out by the answer "none"."""
    out: dict[str, tuple[str, FoundRadio]] = {}
    for driver, radio in seen.radios:
        free = [r for r in ROLES if r not in out and (radio.can_transmit or r == "eve")]
        if not free:
            break
        answer = ask(f"{radio.words}, serial number {radio.serial or 'not stated'}: role", free[0], [*free, "none"])
        if answer != "none":
            out[answer] = driver, radio
    return out


def check(path: Path, name: str) -> None:
    """Raise InputError, before anybody is asked anything, where the lab file cannot be written or be called so."""
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}; accepted: up to 40 letters, digits, - and _")
    if path.exists():
        raise InputError(f"{path}: exists; accepted: a new file (--out)")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(
            f"{path}: cannot be written; accepted: a new file in a folder that this user can write (--out)"
        )


def write(path: Path, name: str, roles: dict[str, tuple[str, FoundRadio]], seen: Seen) -> None:
    """Write the lab file and read it back; raises InputError if it cannot be written or exists."""
    check(path, name)
    if not {"alice", "bob"} & roles.keys():
        raise InputError("no device was given the role of Alice or Bob; accepted: at least one of them")
    try:
        write_whole(path, text(name, roles, seen).encode(), fresh=True)
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror}") from exc
    config.load_lab(str(path))


def text(name: str, roles: dict[str, tuple[str, FoundRadio]], seen: Seen) -> str:
    """Return the lab file."""
    out = [
        "# Written by `testbed init` from the devices that answered. Next:",
        "#     testbed keygen-certs --lab THIS_FILE",
        "#     testbed doctor --lab THIS_FILE --experiment onair_first_key     (names better gains)",
        "schema = 1",
        f"name = {toml_text.inline(name)}",
        "",
    ]
    alone = not {"alice", "bob"} <= roles.keys()
    if alone:
        out += [
            "[coordinator]",
            'host = "192.0.2.1"      # put this machine\'s address here, for the other machine',
            "port = 45000",
            "",
        ]
    for role in ROLES:
        if role in roles:
            out += _table(role, *roles[role])
            if alone and role == "alice":
                out[-1:] = ['host = "192.0.2.1"      # this machine\'s address', "port = 45010", ""]
        elif role != "eve":
            out += [
                f"[node.{role}]            # no device was found for it here: on its machine, testbed node {role}",
                f'role = "{role}"',
                f'driver = "{next(iter(roles.values()))[0]}"',
                "local = false",
                'host = "192.0.2.2"      # put the address of that machine here',
                *(["port = 45010"] if role == "alice" else []),
                "",
            ]
    for port in seen.ports:
        out += [
            f"# [node.ris]             # if a surface's board is at {port}",
            '# role = "ris"',
            '# driver = "opensourceris"   # or ris595',
            f"# options = {{ uri = {toml_text.inline(port)} }}",
            "",
        ]
    return "\n".join(out)


def _table(role: str, driver: str, radio: FoundRadio) -> list[str]:
    low, high = radio.rx_gain_db
    tx_low, tx_high = radio.tx_gain_db
    sends = [f"tx_gain_db = {max(tx_low, tx_high - _BELOW_FULL_DB):.0f}.0"] if radio.can_transmit else []
    return [
        f"[node.{role}]            # {radio.words}",
        f'role = "{role}"',
        f"driver = {toml_text.inline(driver)}",
        *sends,
        f"rx_gain_db = {round(low + _RX_SHARE * (high - low))}.0",
        f"options = {{ {', '.join(f'{k} = {toml_text.inline(v)}' for k, v in radio.options.items())} }}",
        "",
    ]
