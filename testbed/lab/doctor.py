"""Checks everything of this machine that a lab file names: key files, ports, clocks, radios, boards.

Every finding is one line; where something must be mended, the line says how. Measurements of a radio are stored in its
node's state folder (`nodes/calibration.py`), where the node's daemon reads them. The doctor starts no node daemons and
drives every device of this machine itself; only the simulated air and its emulated devices are separate processes.
"""

from __future__ import annotations

import errno
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from testbed import config
from testbed.core import identity, patterns, registry
from testbed.core.config import Experiment, Lab, ProbingPlan, RadioPlan
from testbed.core.errors import InputError, TestbedError
from testbed.core.radio import Radio, RadioSettings
from testbed.core.ris import Board
from testbed.core.types import C64, F64, SurfacePattern
from testbed.core.words import counted
from testbed.lab import cable as cables
from testbed.lab import measure, pools, processes
from testbed.nodes import calibration, chains
from testbed.nodes.calibration import Calibration, GainStep, Heard

_SCENE = "static_room"
"""The bundled experiment whose scene is put into the air of a simulated lab while the lab is checked."""
_GAIN_ERROR_DB = 1.5
_WELL_ABOVE_NOISE_DB = 10.0
_OFFSET_DBFS = -25.0
_NOISE_DBFS = -20.0
_CLIPPED = 1e-3
_SNR_DB = 10.0
_LEAST_CABLE_FRAMES = 4
"""Least number of frames in each direction: two for the responses, two to check their effect."""
_HEADROOM_DBFS = -12.0
"""Level that a good receive gain gives: fading may add a few decibels, and quantization stays far below the noise."""
_PPM_OFF = 2.0
"""Largest error of a correction in the lab file; if it is larger, the correction belongs to another device."""
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


Pair = tuple[str, str]
"""(tx, rx)."""


class Finding(Struct, frozen=True):
    subject: str
    check: str
    ok: bool
    detail: str
    fix: str = ""
    """What to do; empty where nothing must be done."""


class Diagnosis(Struct, frozen=True):
    lab: str
    ok: bool
    findings: list[Finding]
    radios: dict[str, Calibration]
    """What was measured, by node."""


class _Notes:
    """Collects findings and passes each one on as soon as it is made."""

    def __init__(self, tell: Callable[[Finding], None]) -> None:
        self._tell = tell
        self.all: list[Finding] = []

    def ok(self, subject: str, check: str, detail: str) -> None:
        self._add(Finding(subject, check, True, detail))

    def fix(self, subject: str, check: str, detail: str, fix: str) -> None:
        self._add(Finding(subject, check, False, detail, fix))

    def judge(self, subject: str, check: str, detail: str, fix: str) -> None:
        """Note a finding; it is good if `fix` is empty."""
        self._add(Finding(subject, check, not fix, detail, fix))

    def _add(self, finding: Finding) -> None:
        self.all.append(finding)
        self._tell(finding)

    @contextmanager
    def guard(self, subject: str, check: str, fix: str) -> Iterator[None]:
        """Turn an error in the block into a finding."""
        try:
            yield
        except TestbedError as exc:
            self.fix(subject, check, str(exc), fix)


def examine(
    lab: Lab,
    lab_name: str,
    radio: RadioPlan,
    repeats: int = 8,
    tell: Callable[[Finding], None] = lambda _: None,
    experiment: Experiment | None = None,
    names: list[str] | None = None,
    cable: bool = False,
) -> Diagnosis:
    """Check a lab and measure this machine's radios; `tell` is called with each finding as soon as it is made.

    With an experiment, its probes and scene are used (its carrier and rate are in `radio`), and a setting of it that a
    device cannot take is a finding. `names`: the nodes of this machine; by default those whose hosts are its addresses,
    or all that the lab calls local. `cable`: the radios are joined by cables and attenuators, so that the responses of
    their own chains can be measured and stored for the nodes (`nodes/chains.py`).
    """
    notes = _Notes(tell)
    here = _here(lab, names)
    if lab.curve:
        _keys(lab, here, notes)
    else:
        notes.fix(
            "lab", "authentication", "curve = false: any program on the network can send orders", "set curve = true"
        )
    if lab.wegman_carter:
        _pools(lab, here, notes)
    _network(lab, here, notes)
    drivers = _drivers(lab, here, notes)
    if experiment is not None:
        planned = msgspec.structs.replace(experiment, radio=radio)
        with notes.guard("lab", "limits", "correct the lab file"):
            for v in config.violations(planned, lab, [n for n in lab.node if n in here]):
                notes.fix(v.node, "limits", v.detail, v.change)
    measured: dict[str, Calibration] = {}
    with ExitStack() as stack:
        crew = processes.Crew(lab, lab_name)
        stack.callback(crew.stop)
        air = _air(lab, crew, radio, experiment, notes)
        if lab.world is not None and air is None:
            drivers = {}
        devices: dict[str, Any] = {}
        for name in drivers:
            with notes.guard(name, "device", f"check the device and [node.{name}.options]"):
                devices[name] = stack.enter_context(processes.open_device(lab, name, crew, air))
                what = ", ".join(f"{k} {v}" for k, v in devices[name].identity().items() if v not in ("", None))
                notes.ok(name, "device", what)
        _serials(lab, devices, notes)
        for name, device in devices.items():
            if isinstance(device, Board):
                _board(name, device, notes)
        probing = ProbingPlan() if experiment is None else experiment.probing
        radios = {n: d for n, d in devices.items() if isinstance(d, Radio)}
        links = _radios(lab, radios, radio, probing, repeats, notes, measured)
        if cable:
            _cable(lab, radios, links, notes, measured)
    for name, place in lab.node.items():
        if name not in here:
            notes.ok(name, "elsewhere", f"not on this machine: run `testbed doctor {name}` on {place.host}")
    for name, found in measured.items():
        folder = processes.node_state_dir(lab, name)
        before = calibration.read(folder, {"serial": found.serial}) if found.correction_ppm is None else None
        if before is not None:  # a quantity that could not be measured this time keeps its earlier value
            found = msgspec.structs.replace(found, correction_ppm=before.correction_ppm, reference=before.reference)
        calibration.write(folder, found)
    return Diagnosis(lab.name, all(f.ok for f in notes.all), notes.all, measured)


def _air(lab: Lab, crew: processes.Crew, radio: RadioPlan, experiment: Experiment | None, notes: _Notes) -> str | None:
    """Return the address of the simulated air, started where that is this machine's; None where there is none here."""
    if lab.world is None:
        return None
    if lab.world.local and _port_trouble(lab.world.host, 0) is not None:
        # A run starts it on its own machine. If it were started here, new keys would be made for it here.
        what = f"not on this machine: a run starts it on {lab.world.host}; devices on it are checked there"
        notes.ok("world", "elsewhere", what)
        return None
    try:
        scene = (experiment or config.load_experiment(_SCENE)).scene
        air = processes.start_air(lab, crew, scene, radio, 1)
        notes.ok("world", "simulated air", air)
        return air
    except TestbedError as exc:
        notes.fix("world", "simulated air", str(exc), "see that log; the devices on it cannot be checked")
        return None


# ---------------------------------------------------------------- files and ports


def _keys(lab: Lab, here: set[str], notes: _Notes) -> None:
    folder = processes.lab_folder(lab) / "transport"
    names = processes.daemon_names(lab)
    everything_here = lab.coordinator.local and all(p.local for p in lab.node.values())
    if everything_here and (lab.world is None or lab.world.local):
        processes.make_keys(lab, names)  # a run would make them, too
    own = [n for n in names if n in here]
    bad = False
    for name in own:
        try:
            identity.load(folder, name, [])
        except InputError as exc:
            bad = True
            path = folder / f"{name}.secret"
            exposed = path.exists() and path.stat().st_mode & 0o077
            fix = f"chmod 600 {path}" if exposed else f"testbed keygen-certs --lab LAB {name}, then copy .public files"
            notes.fix(name, "transport key", str(exc), fix)
    for name in names:
        if name not in here and not (folder / f"{name}.public").exists():
            bad = True
            notes.fix(
                name, "transport key", f"{folder / name}.public is missing here",
                f"copy it from {_host(lab, name)}, where `testbed keygen-certs --lab LAB {name}` makes it",
            )  # fmt: skip
    for path in sorted(processes.lab_folder(lab).glob("*/keys/*/*.key")):
        if path.stat().st_mode & 0o077:
            bad = True
            notes.fix(path.parts[-4], "delivered key", f"{path} is readable by others", f"chmod 600 {path}")
    if not bad:
        notes.ok("lab", "keys", f"{counted(len(own), 'pair')} in {folder}, readable by their owner only")


def _pools(lab: Lab, here: set[str], notes: _Notes) -> None:
    """Check the pools of one-time authentication: rehearsals need none, every other run needs one pair of pads per
    block.
    """
    for name in pools.ends(lab):
        if name not in here:
            continue
        with notes.guard(name, "authentication pool", "testbed keys pool --lab LAB, for both ends"):
            pool = pools.of(lab, name)
            blocks = 0 if pool is None else pool.pairs
            fix = "" if blocks else "testbed keys pool --lab LAB, for both ends"
            notes.judge(
                name, "authentication pool", f"enough for {counted(blocks, 'block')}; rehearsals need none", fix
            )


def _here(lab: Lab, names: list[str] | None) -> set[str]:
    """Return the daemons of this machine: those in `names`, or else those whose hosts are addresses of this machine.

    The same lab file is used on every machine; its local daemons are those of the coordinator's machine. If no remote
    daemon has an address of this machine as its host, this machine is taken to be the coordinator's.
    """
    if names:
        return set(names)
    remote = {n for n in processes.daemon_names(lab) if not _is_local(lab, n)}
    found = {n for n in remote if _host(lab, n) not in _LOOPBACK and _port_trouble(_host(lab, n), 0) is None}
    if not found:
        return set(processes.local_names(lab))
    ours = {_host(lab, n) for n in found}
    return found | {n for n in processes.local_names(lab) if _host(lab, n) in ours}


def _host(lab: Lab, name: str) -> str:
    if name == "coordinator":
        return lab.coordinator.host
    return lab.world.host if name == "world" and lab.world is not None else lab.node[name].host


def _is_local(lab: Lab, name: str) -> bool:
    if name == "coordinator":
        return lab.coordinator.local
    if name == "world":
        return lab.world is not None and lab.world.local
    return lab.node[name].local


def _network(lab: Lab, here: set[str], notes: _Notes) -> None:
    """Check that every host has an address, and that every fixed port of this machine is free."""
    hosts = {"coordinator": lab.coordinator.host, **({"world": lab.world.host} if lab.world else {})}
    hosts |= {n: p.host for n, p in lab.node.items()}
    unknown = set()
    for name, host in hosts.items():
        try:
            socket.getaddrinfo(host, None)
        except OSError as exc:
            unknown.add(name)
            notes.fix(name, "host", f"{host!r} has no address ({exc.strerror})", "correct 'host', or the name service")
    ports = [("coordinator", lab.coordinator.host, lab.coordinator.port)]
    if lab.world is not None:
        ports.append(("world", lab.world.host, lab.world.port))
    alice = lab.by_role("alice")
    if alice is not None and lab.node[alice].port:
        ports += [(alice, lab.node[alice].host, lab.node[alice].port + i) for i in (0, 1)]
    for name, host, port in ports:
        if name in unknown or name not in here:
            continue
        trouble = _port_trouble(host, port)
        if trouble:
            notes.fix(name, "port", f"{host}:{port}: {trouble[0]}", trouble[1])
        elif port:
            notes.ok(name, "port", f"{host}:{port} is free")
    if not unknown:
        notes.ok("lab", "hosts", f"{', '.join(sorted(set(hosts.values())))} found")


def _port_trouble(host: str, port: int) -> tuple[str, str] | None:
    """Return what keeps this machine from listening there, and what to do about it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as exc:
        return f"{host!r} has no address ({exc.strerror})", "correct 'host', or the name service"
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return "in use", "end the program that listens there (`ss -ltnp`), or choose another 'port'"
            if exc.errno == errno.EADDRNOTAVAIL:
                return "no address of this machine", "correct 'host', or set local = false"
            return str(exc.strerror), "choose another 'port'"
    return None


# ---------------------------------------------------------------- devices


def _drivers(lab: Lab, here: set[str], notes: _Notes) -> dict[str, Any]:
    found = {}
    for name, place in lab.node.items():
        if name not in here:
            continue
        group = "boards" if place.role == "ris" else "radios"
        try:
            found[name] = registry.load_driver(group, place.driver)
        except InputError as exc:
            installed = ", ".join(registry.names(group))
            notes.fix(name, "driver", str(exc), f"set driver to one of {installed}, or install the package that has it")
    return found


def _serials(lab: Lab, devices: dict[str, Any], notes: _Notes) -> None:
    found = {n: str(d.identity().get("serial") or "") for n, d in devices.items()}
    for serial, n in Counter(s for s in found.values() if s).items():
        if n > 1:
            names = [name for name, s in found.items() if s == serial]
            notes.fix(
                ", ".join(names), "serial number", f"all drive the device {serial!r}",
                "give each node the serial number of its own device in options",
            )  # fmt: skip


def _board(name: str, board: Board, notes: _Notes) -> None:
    # The pattern is random, because a regular one, such as a chequerboard, is the same in a wrong order of elements.
    drawn = patterns.make("random(1)", board.shape, board.phase_bits)
    opposite = SurfacePattern(((1 << board.phase_bits) - 1 - drawn.levels).astype(np.uint8), board.phase_bits)
    took_s = []
    with notes.guard(name, "board", "check its cable, power and firmware"):
        for pattern in (drawn, opposite, patterns.make("uniform", board.shape, board.phase_bits)):
            levels = pattern.levels
            began_s = time.monotonic()
            applied = board.apply(pattern)
            took_s.append(time.monotonic() - began_s)
            back = board.readback()
            if applied.digest != pattern.digest or not np.array_equal(back.levels, levels):
                n_wrong = int(np.count_nonzero(back.levels != levels)) if back.levels.shape == board.shape else -1
                notes.fix(
                    name, "board", f"{n_wrong} of {levels.size} elements read back differently from what was set",
                    "check 'rows' and 'columns', and the cable: it may lose bytes",
                )  # fmt: skip
                return
        shape = f"{board.shape[0]} × {board.shape[1]} elements of {board.phase_bits} bit"
        notes.ok(name, "board", f"{shape}, three patterns read back, acknowledged in {1e3 * max(took_s):.1f} ms")


# ---------------------------------------------------------------- radios


def _radios(
    lab: Lab, radios: dict[str, Radio], plan: RadioPlan, probing: ProbingPlan, repeats: int, notes: _Notes,
    measured: dict[str, Calibration],
) -> _Links | None:  # fmt: skip
    """Measure each radio alone and every pair; return the frames of all pairs, None if no pair was measured."""
    virtual = lab.world is not None and lab.world.pace == "virtual"
    wanted = {
        n: RadioSettings(plan.carrier_hz, plan.sample_rate_hz, lab.node[n].tx_gain_db, lab.node[n].rx_gain_db)
        for n in radios
    }
    ready: dict[str, Radio] = {}
    for name, radio in radios.items():
        radio.correction_ppm = lab.node[name].correction_ppm or 0.0
        with notes.guard(name, "settings", f"change [node.{name}] gains, or --carrier-hz and --rate-hz"):
            accepted = radio.configure(wanted[name])
            ready[name] = radio
            off = abs(accepted.sample_rate_hz / wanted[name].sample_rate_hz - 1)
            notes.judge(
                name, "settings",
                f"{accepted.carrier_hz / 1e6:.6f} MHz, {accepted.sample_rate_hz / 1e6:g} MS/s, gains "
                f"{accepted.tx_gain_db:g} dB sent, {accepted.rx_gain_db:g} dB received",
                "choose a --rate-hz that it can keep" if off > 1e-6 else "",
            )  # fmt: skip
            measured[name] = Calibration(
                serial=str(radio.identity().get("serial") or ""),
                measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
                settings={k: float(getattr(accepted, k)) for k in RadioSettings.__slots__},
                virtual=virtual,
            )
        if name not in ready:
            radio.close()  # on simulated air the others would wait for it
    if not ready:
        return None
    with notes.guard("radios", "clocks", "check the devices above, which stopped answering"):
        bench = measure.Bench(ready, wanted, virtual, probing)
        for name, radio in ready.items():
            _alone(lab, name, radio, bench, notes, measured)
        return _links(lab, ready, bench, repeats, notes, measured)
    return None


def _alone(
    lab: Lab, name: str, radio: Radio, bench: measure.Bench, notes: _Notes, measured: dict[str, Calibration]
) -> None:
    who = radio.identity()
    source = ", ".join(f"{k} {who[k]}" for k in ("clock_source", "time_source") if k in who)
    untimed = "samples cannot be timed, so the slots of a round are ordered one by one"
    timed = "samples are timed" if radio.capabilities.timed else untimed
    reading_s = bench.reading_s[name]
    how = "read exactly, because time is virtual" if reading_s == 0 else f"read within ± {1e3 * reading_s:.3g} ms"
    notes.ok(name, "clock", f"{how}; {source or timed}")
    with notes.guard(name, "silence", "check the device"):
        quiet = bench.silence(name)
        fix = ""
        if quiet.clipped > _CLIPPED or quiet.noise_dbfs > _NOISE_DBFS:
            fix = "find who else transmits on this carrier, or lower rx_gain_db, which may be far too high"
        elif quiet.dc_offset_dbfs > _OFFSET_DBFS:
            fix = "let the device calibrate its DC offset"
        notes.judge(
            name, "silence", f"noise {quiet.noise_dbfs:.1f} dBFS, DC offset {quiet.dc_offset_dbfs:.1f} dBFS", fix
        )
        measured[name] = msgspec.structs.replace(
            measured[name], dc_offset_dbfs=quiet.dc_offset_dbfs, noise_dbfs=quiet.noise_dbfs
        )
    if lab.node[name].role == "eve":  # Eve never transmits
        return
    with notes.guard(name, "turn-around", "check the device"):
        took_s, stated_s = bench.turnaround_s(name), radio.capabilities.turnaround_s
        note = "; virtual time does not include it" if measured[name].virtual else ""
        notes.ok(
            name, "turn-around",
            f"{1e3 * took_s:.2f} ms on the host, the driver states {1e3 * stated_s:.3f} ms{note}",
        )  # fmt: skip
        measured[name] = msgspec.structs.replace(measured[name], turnaround_s=took_s)


def _links(
    lab: Lab, radios: dict[str, Radio], bench: measure.Bench, repeats: int, notes: _Notes,
    measured: dict[str, Calibration],
) -> _Links | None:  # fmt: skip
    roles = {lab.node[n].role: n for n in radios}
    senders = [roles[r] for r in ("alice", "bob") if r in roles]
    timed = {n: r.capabilities.timed for n, r in radios.items()}
    if len(set(timed.values())) > 1:
        notes.fix(
            "radios", "timing", f"{', '.join(n for n in timed if not timed[n])} cannot time samples and so miss the "
            f"frames of {', '.join(n for n in timed if timed[n])}, which are sent once, at a set time",
            "use radios of one kind; simulated ones take options = { timed = false }",
        )  # fmt: skip
    pairs = [(tx, rx) for tx in senders for rx in radios if tx != rx and timed[tx] <= timed[rx]]
    if not pairs:
        notes.ok("radios", "links", "this machine has no two radios that can receive one another: no link was measured")
        return None
    _gains(lab, radios, pairs, bench, notes, measured)
    links = _Links(bench, pairs, repeats)
    links.sound(pairs)
    _frequencies(lab, radios, links, notes, measured)
    for tx, rx in pairs:
        _judge_pair(lab, radios, links, (tx, rx), notes, measured)
    for name in radios:
        delays = [h.delay_s for h in measured[name].heard.values() if h.delay_s is not None]
        if delays:
            mean = calibration.Delay(
                mean_s=float(np.mean([d.mean_s for d in delays])), std_s=max(d.std_s for d in delays)
            )
            measured[name] = msgspec.structs.replace(measured[name], delay_s=mean)
    return links


def _cable(
    lab: Lab, radios: dict[str, Radio], links: _Links | None, notes: _Notes, measured: dict[str, Calibration]
) -> None:
    """Store each radio's responses over frequency, and report their effect between Alice and Bob.

    The responses come from half of the frames; their effect is measured with the other half.
    """
    if links is not None and any(r.capabilities.n_antennas > 1 for r in radios.values()):
        _antennas(lab, radios, links, notes, measured)
        return
    frames = {} if links is None else {p: _channels(links.found[p]) for p in links.pairs}
    frames = {pair: found for pair, found in frames.items() if len(found) >= _LEAST_CABLE_FRAMES}
    if links is None or not frames:
        notes.fix(
            "radios", "cable", "no pair of radios received enough frames",
            "join each pair by a cable with an attenuator, and see the links above",
        )  # fmt: skip
        return
    axis = links.bench.frame.subcarrier_hz
    halves = [{p: cables.mean_channel([h[0, 0] for h in f[i::2]]) for p, f in frames.items()} for i in (0, 1)]
    responses = cables.separate(halves[0], axis)
    delays_s = _delays(frames, measured)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for name in responses.rx:
        device, settings = measured[name], measured[name].settings
        sent = name in responses.tx
        tx_db, tx_rad = responses.tx[name] if sent else (np.zeros(0), np.zeros(0))
        rx_db, rx_rad = responses.rx[name]
        response = chains.ChainResponse(
            serial=device.serial, carrier_hz=settings["carrier_hz"], sample_rate_hz=settings["sample_rate_hz"],
            measured_at=now, subcarrier_hz=axis.tolist(), rx_db=(rx_db - rx_db.mean()).tolist(),
            rx_rad=rx_rad.tolist(), rx_level_db=float(rx_db.mean()),
            tx_db=(tx_db - tx_db.mean()).tolist() if sent else [], tx_rad=tx_rad.tolist(),
            tx_level_db=float(tx_db.mean()) if sent else None,
            rx_delay_s=delays_s.get(("rx", name)), tx_delay_s=delays_s.get(("tx", name)),
        )  # fmt: skip
        chains.write(processes.node_state_dir(lab, name), response)
        detail = f"received {_ripple(rx_db)}" + (f", sent {_ripple(tx_db)}" if sent else "")
        if response.rx_delay_s is not None:
            detail += f"; delay received {1e9 * response.rx_delay_s:.1f} ns"
            detail += f", sent {1e9 * response.tx_delay_s:.1f} ns" if response.tx_delay_s is not None else ""
        notes.ok(name, "cable", f"{detail}; stored for {device.serial or 'a device without serial number'}")
    _judge_cable(lab, radios, halves[1], responses, notes)


def _antennas(
    lab: Lab, radios: dict[str, Radio], links: _Links, notes: _Notes, measured: dict[str, Calibration]
) -> None:
    """Store T/R of each antenna of Alice and Bob, and report its effect, with frames that were not used for it.

    The channel between the antennas may be cables of any length, or the air; it has to be the same in both directions.
    """
    roles = {lab.node[n].role: n for n in radios}
    names = [roles[r] for r in ("alice", "bob") if r in roles]
    if len(names) < 2:
        notes.fix("radios", "cable", "Alice's and Bob's radios are not both here", "run it where both are")
        return
    first, second = names
    pairs: list[tuple[C64, C64]] = []
    lost: Counter[str] = Counter()
    with notes.guard("radios", "cable", "radios with several antennas must time their samples"):
        for _ in range(links.repeats):
            there, back = (links.sound_antennas(pair) for pair in ((first, second), (second, first)))
            if there.found is not None and back.found is not None:
                pairs.append((there.found.h, back.found.h))
            else:
                lost[there.reason or back.reason] += 1
        if len(pairs) < _LEAST_CABLE_FRAMES:
            detail = f"{len(pairs)} of {links.repeats} soundings were received ({lost.most_common(1)[0][0]})"
            notes.fix("radios", "cable", detail, "see the links above; the probes are those of --experiment")
    if len(pairs) < _LEAST_CABLE_FRAMES:
        return
    axis = links.bench.frame.subcarrier_hz
    used, rest = pairs[::2], pairs[1::2]
    ratios = cables.of_antennas([x for x, _ in used], [y for _, y in used], axis)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for name, ratio in zip(names, ratios, strict=True):
        device, settings = measured[name], measured[name].settings
        db, rad = 20.0 * np.log10(np.abs(ratio)), np.angle(ratio)
        response = chains.ChainResponse(
            serial=device.serial, carrier_hz=settings["carrier_hz"], sample_rate_hz=settings["sample_rate_hz"],
            measured_at=now, subcarrier_hz=axis.tolist(), rx_db=[], rx_rad=[], rx_level_db=0.0,
            ratio_db=db.tolist(), ratio_rad=rad.tolist(),
        )  # fmt: skip
        chains.write(processes.node_state_dir(lab, name), response)
        spread = (
            f"the ratio of transmit to receive response of {len(ratio)} antennas varies by {np.std(db):.2f} dB (std)"
        )
        notes.ok(name, "cable", f"{spread}; stored for {device.serial or 'a device without serial number'}")
    at_second, at_first = (np.sqrt(np.mean([np.abs(one[k]) ** 2 for one in rest], axis=0)) for k in (0, 1))
    before_db = cables.apart_db(at_second, at_first.transpose(1, 0, 2))
    after_db = cables.apart_db(at_second * ratios[1][:, None], (at_first * ratios[0][:, None]).transpose(1, 0, 2))
    _tell_reciprocity(first, second, before_db, after_db, notes)


def _judge_cable(
    lab: Lab, radios: dict[str, Radio], channels: dict[Pair, C64], responses: cables.Responses, notes: _Notes
) -> None:
    """Report the difference of Alice's and Bob's directions before and after, with frames that were not used."""
    roles = {lab.node[n].role: n for n in radios}
    alice, bob = roles.get("alice"), roles.get("bob")
    if alice is None or bob is None or not {(alice, bob), (bob, alice)} <= channels.keys():
        return
    at_bob, at_alice = channels[alice, bob], channels[bob, alice]
    before_db = cables.apart_db(at_alice, at_bob)
    after_db = cables.apart_db(at_alice * responses.ratio(alice), at_bob * responses.ratio(bob))
    _tell_reciprocity(alice, bob, before_db, after_db, notes)


def _tell_reciprocity(alice: str, bob: str, before_db: float, after_db: float, notes: _Notes) -> None:
    differ = f"the two directions differ by {before_db:.2f} dB over frequency (std), by {after_db:.2f} dB with both "
    if after_db < before_db:
        use = "calibrated; set calibrated = true in both nodes' tables to use this in a run"
        notes.ok(f"{alice} ↔ {bob}", "reciprocity", differ + use)
    else:  # what was measured is noise
        fix = "raise the signal: less attenuation in the cables, more gain, more --repeats"
        notes.fix(f"{alice} ↔ {bob}", "reciprocity", differ + "calibrated", fix)


def _channels(soundings: list[measure.Sounding]) -> list[C64]:
    return [s.found.h for s in soundings if s.found is not None]


def _delays(frames: dict[Pair, list[C64]], measured: dict[str, Calibration]) -> dict[tuple[str, str], float]:
    """Return ("tx" or "rx", device) → delay in s, including half of the cable's; empty if one was not measured."""
    known = {}
    for tx, rx in frames:
        heard = measured[rx].heard.get(tx)
        if heard is None or heard.delay_s is None:
            return {}
        known[tx, rx] = heard.delay_s.mean_s
    senders, listeners = (sorted({p[side] for p in known}) for side in (0, 1))
    sums = np.array(list(known.values()))[:, None]
    tx_s, rx_s = cables.shared_out(list(known), senders, listeners, sums)
    return {("tx", n): float(tx_s[i, 0]) for i, n in enumerate(senders)} | {
        ("rx", n): float(rx_s[i, 0]) for i, n in enumerate(listeners)
    }


def _ripple(db: F64) -> str:
    return f"± {np.std(db):.2f} dB over the band"


def _gains(
    lab: Lab, radios: dict[str, Radio], pairs: list[Pair], bench: measure.Bench, notes: _Notes,
    measured: dict[str, Calibration],
) -> None:  # fmt: skip
    for name in radios:
        source = next((tx for tx, rx in pairs if rx == name), None)
        if source is None:
            continue
        with notes.guard(name, "gain", "check the device"):
            table = bench.gain_table(name, source)
            measured[name] = msgspec.structs.replace(measured[name], gain_table=table)
            nominal_db = lab.node[name].rx_gain_db
            detail, fix = judge_gain(table, nominal_db, measured[name].noise_dbfs)
            notes.judge(name, "gain", detail, f"{fix} in [node.{name}]" if "rx_gain_db" in fix else fix)


class _Links:
    """Sends frames from radio to radio, and collects the results of each link."""

    def __init__(self, bench: measure.Bench, pairs: list[Pair], repeats: int) -> None:
        self.bench, self.pairs, self.repeats = bench, pairs, repeats
        self.found: dict[Pair, list[measure.Sounding]] = {pair: [] for pair in pairs}
        self.broken: dict[Pair, str] = {}
        self.apart_hz: dict[Pair, float] = {}
        """Carrier of tx minus that of rx, in Hz, without the corrections that the doctor itself applied."""
        self.taken_hz: dict[Pair, float] = dict.fromkeys(pairs, 0.0)
        """Part of that difference, in Hz, which the doctor's own corrections remove."""

    def sound(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            self.found[pair] = []
        for _ in range(self.repeats):  # the directions alternate, so that drift and delay can be distinguished
            for pair in pairs:
                if pair not in self.broken:
                    try:
                        self.found[pair].append(self.bench.sound(*pair))
                    except TestbedError as exc:
                        self.broken[pair] = str(exc)

    def sound_antennas(self, pair: Pair) -> measure.Sounding:
        """Sound every antenna, in the window in which the latest frame arrived."""
        errors = [s.error_s for s in self.found[pair] if s.error_s is not None]
        return self.bench.sound_antennas(*pair, errors[-1] if errors else 0.0)

    def heard(self, pair: Pair) -> bool:
        return any(s.found for s in self.found[pair])

    def cfo_hz(self, pair: Pair) -> float | None:
        """Return the carriers' difference in Hz without the doctor's own corrections; None where no frame was found."""
        good = [s.found.cfo_hz for s in self.found[pair] if s.found is not None]
        return float(np.mean(good)) + self.taken_hz[pair] if good else None


def _frequencies(
    lab: Lab, radios: dict[str, Radio], links: _Links, notes: _Notes, measured: dict[str, Calibration]
) -> None:
    """Measure every crystal's error against one of them: by frames, or by tones where frames are not found."""
    for pair in links.pairs:
        offset_hz = links.cfo_hz(pair)
        if offset_hz is None and pair not in links.broken:
            with notes.guard(f"{pair[0]} → {pair[1]}", "frequency", "check both devices"):
                offset_hz = links.bench.offset_hz(*pair)
        if offset_hz is not None:
            links.apart_hz[pair] = offset_hz
    reference = min(radios, key=lambda n: ("alice", "bob", "eve").index(lab.node[n].role))
    carrier_hz = radios[reference].settings.carrier_hz
    found = measure.crystals_ppm({p: 1e6 * hz / carrier_hz for p, hz in links.apart_hz.items()}, reference)
    given = {n: lab.node[n].correction_ppm for n in radios}
    for name, off_ppm in found.items():
        total_ppm = off_ppm + (given[name] or 0.0) - (given[reference] or 0.0)
        measured[name] = msgspec.structs.replace(measured[name], correction_ppm=total_ppm, reference=reference)
        if name != reference:
            notes.judge(name, "frequency", *_judge_frequency(name, reference, off_ppm, given[name], carrier_hz))
    lost = [pair for pair in links.pairs if not links.heard(pair) and pair in links.apart_hz]
    if lost:  # no frame was found because the offset was too large: measure again with the offset corrected
        for name, off_ppm in found.items():
            with notes.guard(name, "frequency", "check the device"):
                links.bench.correct(name, off_ppm + (given[name] or 0.0))
        for tx, rx in lost:
            links.taken_hz[tx, rx] = 1e-6 * carrier_hz * (found.get(tx, 0.0) - found.get(rx, 0.0))
        links.sound(lost)


def _judge_frequency(
    name: str, reference: str, off_ppm: float, given_ppm: float | None, carrier_hz: float
) -> tuple[str, str]:
    off_hz = 1e-6 * off_ppm * carrier_hz
    detail = f"{off_ppm:+.2f} ppm against {reference} ({off_hz:+.0f} Hz)"
    if given_ppm is None:
        return f"{detail}; stored as this device's correction, which applies from the next run on", ""
    detail += f" with correction_ppm = {given_ppm:g} from the lab file"
    if abs(off_ppm) > _PPM_OFF:
        return detail, f"set correction_ppm = {given_ppm + off_ppm:.2f} in [node.{name}], or leave it out"
    return detail, ""


def _judge_pair(
    lab: Lab, radios: dict[str, Radio], links: _Links, pair: Pair, notes: _Notes, measured: dict[str, Calibration]
) -> None:
    (tx, rx), soundings = pair, links.found[pair]
    subject = f"{tx} → {rx}"
    if pair in links.broken:
        notes.fix(subject, "link", links.broken[pair], "check both devices")
    elif not links.heard(pair):
        if soundings and links.bench.is_mirrored(soundings[0]):
            notes.fix(
                subject, "link", f"the spectrum is mirrored: none of {links.repeats} frames was received as sent",
                f"exchange I and Q at {tx} or at {rx}: one of them has them the wrong way round",
            )  # fmt: skip
            return
        why = Counter(s.reason for s in soundings).most_common(1)[0][0]
        advice = f"check antennas and carrier; {_louder(lab, radios, pair, 20.0)}, or less if samples are clipped"
        notes.fix(subject, "link", f"none of {links.repeats} frames was received ({why})", advice)
    else:
        back = links.found.get((rx, tx), [])
        heard, _ = measure.heard(soundings, back, links.repeats)
        cfo_hz = links.cfo_hz(pair) or 0.0
        detail, fix = _judge_link(heard, cfo_hz)
        if heard.snr_db < _SNR_DB:
            fix = f"{_louder(lab, radios, pair, _SNR_DB + 5 - heard.snr_db)}, or a shorter distance"
        notes.judge(subject, "link", detail, fix)
        before = measured[rx]
        measured[rx] = msgspec.structs.replace(
            before, heard={**before.heard, tx: heard}, cfo_hz={**before.cfo_hz, tx: cfo_hz}
        )


def _louder(lab: Lab, radios: dict[str, Radio], pair: Pair, by_db: float) -> str:
    """Return which gains to raise, and to which values within the devices' ranges, for `by_db` more signal."""
    tx, rx = pair
    most_tx, most_rx = (radios[tx].capabilities.tx_gain_db[1], radios[rx].capabilities.rx_gain_db[1])
    now_tx, now_rx = lab.node[tx].tx_gain_db, lab.node[rx].rx_gain_db
    more_tx = min(by_db, most_tx - now_tx)
    said = []
    if more_tx > 0:
        said.append(f"raise tx_gain_db to {now_tx + more_tx:.0f} in [node.{tx}]")
    if by_db > more_tx and most_rx > now_rx:
        said.append(f"raise rx_gain_db to {min(now_rx + by_db - max(more_tx, 0), most_rx):.0f} in [node.{rx}]")
    return " and ".join(said) or f"both gains are at their maximum ({now_tx:g} and {now_rx:g} dB)"


def judge_gain(table: list[GainStep], nominal_db: float, noise_dbfs: float | None) -> tuple[str, str]:
    """Return what a gain table shows and, where the nominal gain clips or gain settings have no effect, the advice."""
    nominal = next((s for s in table if s.rx_gain_db == nominal_db), None)
    if nominal is None:
        return "not measured", "check rx_gain_db"
    detail = f"{nominal.rssi_dbfs:.1f} dBFS at {nominal.rx_gain_db:g} dB"
    if nominal.clipped > _CLIPPED:
        clear = [s for s in table if s.clipped <= _CLIPPED]
        good_db = nominal_db - 10.0
        if clear:
            good_db = clear[-1].rx_gain_db + min(0.0, _HEADROOM_DBFS - clear[-1].rssi_dbfs)
        return (
            f"{detail}, {100 * nominal.clipped:.1f} % of samples clipped",
            f"lower rx_gain_db to {good_db:.0f} ({_HEADROOM_DBFS:g} dBFS leave room for fading)",
        )
    floor_dbfs = -np.inf if noise_dbfs is None else noise_dbfs + _WELL_ABOVE_NOISE_DB
    usable = [s for s in table if s.clipped <= _CLIPPED and s.rssi_dbfs > floor_dbfs]
    if len(usable) < 2:
        return f"{detail}: the level is too near the noise or clipping to check the steps of gain", ""
    asked_db = usable[-1].rx_gain_db - usable[0].rx_gain_db
    seen_db = usable[-1].rssi_dbfs - usable[0].rssi_dbfs
    detail += f"; a change of gain by {asked_db:+g} dB changed the level by {seen_db:+.1f} dB"
    if abs(seen_db - asked_db) > _GAIN_ERROR_DB:
        return detail, "switch automatic gain control off: the device does not keep the gain that is set"
    clips = next((s.rx_gain_db for s in table if s.clipped > _CLIPPED), None)
    return detail + (f"; samples clip from a gain of {clips:g} dB on" if clips is not None else ""), ""


def _judge_link(heard: Heard, cfo_hz: float) -> tuple[str, str]:
    detail = f"SNR {heard.snr_db:.1f} dB, {heard.frames} of {heard.asked} frames, carrier {cfo_hz:+.0f} Hz"
    if heard.delay_s is not None:
        detail += f", delay {1e9 * heard.delay_s.mean_s:.1f} ± {1e9 * heard.delay_s.std_s:.1f} ns"
        detail += "" if heard.two_way else " (measured one way, so it includes the error of reading the clocks)"
    if heard.snr_db < _SNR_DB:
        return detail, "raise a gain, or shorten the distance"
    if heard.frames < heard.asked:
        return detail, "check the gains, and whether another transmitter uses this carrier: frames were lost"
    return detail, ""
