"""Checks what the schema of the two files cannot express: names, options, and values that must be consistent."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from testbed.core import registry, schedule
from testbed.core.config import (
    ChainPlan,
    Experiment,
    Lab,
    NodePlace,
    Options,
    PlacedNode,
    PlacedSurface,
    Training,
    radio_out_of_range,
)
from testbed.core.errors import InputError
from testbed.core.gate import is_identifier
from testbed.core.options import driver_options
from testbed.core.radio import Limits

MIN_TRAINING_ROUNDS = 20


def check_experiment(e: Experiment, source: str) -> None:
    """Check what the schema cannot express, stage names and options included; raises InputError."""
    try:
        schedule.parse(e.probing.schedule)
    except InputError as exc:
        raise InputError(f"{source}: table [probing]: key 'schedule': {exc}") from exc
    if e.probing.train > (most := schedule.longest_train(e.probing.interval_s)):
        raise InputError(
            f"{source}: table [probing]: key 'train': {e.probing.train} rounds of {e.probing.interval_s:g} s, "
            f"accepted: up to {most}, a train of {schedule.LONGEST_TRAIN_S:g} s; 0 chooses what suits the interval"
        )
    if (wrong := radio_out_of_range(e.radio)) is not None:
        raise InputError(f"{source}: table [radio]: {wrong}")
    _stage(source, "probing", "waveform", "probing", e.probing.waveform, e.probing.waveform_options)
    _stage(source, "probing", "estimator", "csi", e.probing.estimator, e.probing.estimator_options)
    check_chain(e.chain, e.training, source)
    if e.beams.policy != "none":
        _stage(source, "beams", "policy", "beams", e.beams.policy, e.beams.options)
    for name in ("alice", "bob", "eve"):
        place: PlacedNode | None = getattr(e.scene, name)
        if place is not None:
            _check_place(name, place, source)
    if e.scene.uma is not None and None in (e.scene.alice.position_m, e.scene.bob.position_m):
        raise InputError(f"{source}: table [scene.uma]: alice and bob need a position_m each")
    if e.mode == "private" and e.records.iq:
        raise InputError(
            f"{source}: table [records]: key 'iq': recorded samples reveal the keys; accepted in private mode: false"
        )
    for name in ("surface", "attacker"):
        panel: PlacedSurface | None = getattr(e.scene, name)
        if panel is not None and not any(panel.normal):
            raise InputError(f"{source}: table [scene.{name}]: key 'normal': has length 0; accepted: not all zero")
    if e.surface.policy != "none":
        _check_surface(e, source)
    elif e.surface.is_secret:
        raise InputError(
            f"{source}: table [surface]: key 'secret': true, but policy = 'none' does not use the surface; accepted: "
            "false, or policy = 'random'"
        )


def _stage(source: str, table: str, key: str, kind: str, name: str, options: Options) -> Any:
    """Build a stage; raises InputError naming file, table and key, for an unknown name or a refused option."""
    try:
        registry.find(kind, name)
    except InputError as exc:
        none = " (or 'none')" if key == "policy" else ""
        raise InputError(f"{source}: table [{table}]: key {key!r}: {exc}{none}") from exc
    below = "options" if key == "policy" else f"{key}_options"
    return registry.make_stage(kind, name, options, source, f"{table}.{below}")


def _check_place(name: str, place: PlacedNode, source: str) -> None:
    if (place.position_m is None) == (place.near is None):
        raise InputError(
            f"{source}: table [scene.{name}]: give either 'position_m' or 'near' (with 'offset_wavelengths')"
        )
    if place.near == name or (place.near is not None and name != "eve"):
        raise InputError(f"{source}: table [scene.{name}]: key 'near': only eve may be placed near alice or bob")


def _check_surface(e: Experiment, source: str) -> None:
    policy = _stage(source, "surface", "policy", "policy", e.surface.policy, e.surface.options)
    if e.surface.is_secret and not policy.can_be_secret:
        raise InputError(
            f"{source}: table [surface]: key 'secret': true, but the patterns of policy = {e.surface.policy!r} "
            "follow from what is public; accepted: false, or policy = 'random'"
        )
    if policy.watches and e.mode == "private":
        raise InputError(
            f"{source}: table [surface]: policy = {e.surface.policy!r} uses the measured channel, which nodes do "
            "not report in private mode; accepted: mode = 'experiment', or a policy that does not use it"
        )
    if e.scene.surface is None:
        raise InputError(
            f"{source}: table [surface]: policy = {e.surface.policy!r} needs a table [scene.surface] "
            "(position_m, normal); accepted without it: policy = 'none'"
        )
    try:
        policy.survey(e.scene, e.radio.carrier_hz)
    except InputError as exc:
        raise InputError(f"{source}: {exc}") from exc


def check_chain(chain: ChainPlan, training: Training, source: str) -> None:
    """Check the stages of a key chain, and that a stage which has to learn has rounds to learn from."""
    enhancer = _stage(source, "chain", "enhance", "enhance", chain.enhance, chain.enhance_options)
    untrained = enhancer.trainable and enhancer.model_id is None
    if untrained and training.rounds < MIN_TRAINING_ROUNDS:
        raise InputError(
            f"{source}: table [training]: key 'rounds': {training.rounds}; enhance = {chain.enhance!r} has to "
            f'learn first: accepted from {MIN_TRAINING_ROUNDS}, or a saved model in enhance_options (model = "FILE")'
        )
    if training.rounds and not untrained:
        raise InputError(
            f"{source}: table [training]: key 'rounds': {training.rounds}; enhance = {chain.enhance!r} has nothing "
            "to learn here: accepted 0"
        )
    _stage(source, "chain", "quantize", "quantize", chain.quantize, chain.quantize_options)
    _stage(source, "chain", "reconcile", "reconcile", chain.reconcile, chain.reconcile_options)


def check_run(e: Experiment, source: str, lab: Lab | None = None) -> None:
    """Check what only a run demands of an experiment; a replay has the rounds and the CSI of its source.

    With a lab, the carrier and rate are checked, too, against what the drivers of its radios accept; a driver that is
    not installed on this machine is checked on the machine that has it.

    Raises InputError where the training leaves no round for a key, where a saved model was made for other CSI, or
    where a radio cannot be tuned to the experiment's carrier or rate.
    """
    if lab is not None:
        check_limits(e, lab, source)
    t = e.training
    if t.rounds and t.rounds + t.guard_rounds >= e.rounds:
        raise InputError(
            f"{source}: table [training]: rounds = {t.rounds} and guard_rounds = {t.guard_rounds} leave nothing of "
            f"rounds = {e.rounds} for a key; accepted: together less than the run's rounds"
        )
    enhancer = registry.make_stage("enhance", e.chain.enhance, e.chain.enhance_options)
    if enhancer.trainable and enhancer.model_id is not None:
        sounder = registry.make_stage("probing", e.probing.waveform, e.probing.waveform_options)
        subcarrier_hz = sounder.frame(e.radio.sample_rate_hz).subcarrier_hz
        try:
            enhancer.check((1, 1, subcarrier_hz.size), subcarrier_hz)  # key rounds are of one beam at each end
        except InputError as exc:
            raise InputError(
                f"{source}: table [chain]: {exc}; accepted: a model trained with the run's [radio] and [probing]"
            ) from exc


def check_lab(lab: Lab, source: str) -> None:
    for role in ("alice", "bob"):
        if lab.by_role(role) is None:
            raise InputError(f"{source}: no node has role = {role!r}; a lab needs one [node.NAME] table for it")
    for role in ("alice", "bob", "eve", "ris"):
        names = [n for n, p in lab.node.items() if p.role == role]
        if len(names) > 1:
            raise InputError(
                f"{source}: tables [node.{names[0]}] and [node.{names[1]}] both have role = {role!r}; accepted: one"
            )
    if not lab.curve:
        _check_loopback(lab, source)
    _check_calibrated(lab, source)
    for name in lab.node:
        if not is_identifier(name) or len(name) > 40 or name in ("coordinator", "world"):
            raise InputError(
                f"{source}: table [node.{name}]: a node's name is 1–40 letters, digits, _ or -, not beginning with -, "
                "and not a daemon's"
            )
    for name in lab.world.emulators if lab.world is not None else ():
        if name not in lab.node:
            raise InputError(f"{source}: table [world.emulators.{name}]: no such node; accepted: {', '.join(lab.node)}")
    if lab.coordinator.lost_after_s < 2 * lab.coordinator.heartbeat_s:
        raise InputError(
            f"{source}: table [coordinator]: key 'lost_after_s': {lab.coordinator.lost_after_s:g} s, accepted from "
            f"twice heartbeat_s = {lab.coordinator.heartbeat_s:g} s, so that no node is lost by one late heartbeat"
        )
    remote = [n for n, p in lab.node.items() if not p.local]
    if remote and lab.coordinator.port == 0:
        raise InputError(
            f"{source}: table [coordinator]: key 'port': 0 (chosen at start) is accepted only where "
            f"every node is local; [node.{remote[0]}] is not"
        )
    alice = lab.node[str(lab.by_role("alice"))]
    if remote and alice.port == 0:
        raise InputError(
            f"{source}: table [node.{lab.by_role('alice')}]: key 'port': Alice's discussion port must be given "
            "where a node is remote"
        )


def _check_calibrated(lab: Lab, source: str) -> None:
    """Raise InputError where only one end corrects its CSI for its own chains, or a node that is not an end does."""
    by_role = {place.role: (name, place.calibrated) for name, place in lab.node.items()}
    for role, (name, calibrated) in by_role.items():
        other = by_role.get("bob" if role == "alice" else "alice")
        if calibrated and role not in ("alice", "bob"):
            raise InputError(f"{source}: table [node.{name}]: calibrated = true; accepted for roles alice and bob")
        if calibrated and other is not None and not other[1]:
            raise InputError(
                f"{source}: table [node.{name}]: calibrated = true, but not in [node.{other[0]}]; accepted: both or "
                "neither"
            )


def _check_loopback(lab: Lab, source: str) -> None:
    """Raise InputError where links without authentication could be reached from another machine."""
    hosts = {"coordinator": lab.coordinator.host} | {f"node.{n}": p.host for n, p in lab.node.items()}
    hosts |= {"world": lab.world.host} if lab.world is not None else {}
    for table, host in hosts.items():
        if host not in ("localhost", "::1", "[::1]") and not re.fullmatch(r"127(\.[0-9]{1,3}){3}", host):
            raise InputError(
                f"{source}: table [{table}]: key 'host': {host!r} with curve = false, which is accepted on this "
                "machine only (127.0.0.1): any program on the network could send orders"
            )


def check_mode(e: Experiment, lab: Lab, source: str) -> None:
    """Raise InputError where a lab cannot keep what the experiment's mode promises."""
    if e.mode == "private" and not lab.curve and not lab.wegman_carter:
        raise InputError(
            f"{source}: key 'curve': false with an experiment of mode = 'private', which needs an authenticated "
            "discussion: without it any program could pose as Alice or Bob; accepted: true, or wegman_carter = true"
        )


def check_drivers(lab: Lab, source: str, names: list[str] | None = None) -> None:
    """Raise InputError where a driver is not installed here, needs a simulated air that the lab does not have, does not
    know an option that its table gives it, or states limits that exclude the table's gains.
    Checks the nodes `names`; by default all that start on this machine, the simulated air included.
    """
    if names is None:
        names = [name for name, place in lab.node.items() if place.local]
        if lab.world is not None and lab.world.local:
            _driver("worlds", lab.world.driver, f"{source}: table [world]")
    for name in names:
        place = lab.node[name]
        group = "boards" if place.role == "ris" else "radios"
        driver = _driver(group, place.driver, f"{source}: table [node.{name}]")
        if lab.world is None and getattr(driver, "needs_world", False):
            raise InputError(
                f"{source}: table [node.{name}]: key 'driver': {place.driver!r} is a simulated device in a lab without "
                "simulated air; accepted: with a table [world], or the driver of a real device"
            )
        kind = getattr(driver, "options_type", None)
        if kind is not None:
            try:
                driver_options(place.options, kind, name)
            except InputError as exc:
                raise InputError(f"{source}: {exc}") from exc
        limits = _limits(lab, name)
        for key in ("tx_gain_db", "rx_gain_db") if limits.can_transmit else ("rx_gain_db",):
            wrong = limits.refusal(key, getattr(place, key))
            if wrong is not None:
                raise InputError(f"{source}: table [node.{name}]: key {key!r}: {wrong} by driver {place.driver!r}")


class Violation(NamedTuple):
    """A setting of an experiment, or of a lab, that a node's device cannot take."""

    node: str
    key: str
    detail: str
    """What is wrong and what is accepted."""
    change: str
    """Which option to change, where, and to what."""


def violations(e: Experiment, lab: Lab, names: list[str] | None = None) -> list[Violation]:
    """Return the settings that the devices of these nodes (by default all whose driver is installed here) cannot take.

    This is decided by the limits that their drivers state (`Radio.limits`); no device is opened.
    """
    found = []
    for name in names if names is not None else list(lab.node):
        found += list(_beyond(e, name, lab.node[name], _limits(lab, name)))
    return found


def check_limits(e: Experiment, lab: Lab, source: str, names: list[str] | None = None) -> None:
    """Raise InputError, in one line, where a device of the lab cannot take a setting of the experiment `source`."""
    found = violations(e, lab, names)
    if found:
        said = "; ".join(f"{v.detail}: {v.change}" for v in found)
        raise InputError(f"{source} on lab {lab.name}: {said}")


def _limits(lab: Lab, name: str) -> Limits:
    """Return a node's limits; boards, and devices whose driver is not installed here, have none."""
    place = lab.node[name]
    if place.role == "ris":
        return Limits()
    try:
        driver = registry.load_driver("radios", place.driver)
    except InputError:
        return Limits()
    options: Options = dict(place.options)
    if lab.world is not None and name in lab.world.emulators:
        world = registry.load_driver("worlds", lab.world.driver)
        options |= world.implied_options(name, place.driver, lab.world.emulators[name])
    limits_of = getattr(driver, "limits_of", None)
    return (limits_of(options) if limits_of is not None else None) or Limits()


def _beyond(e: Experiment, name: str, place: NodePlace, limits: Limits) -> Iterator[Violation]:
    who = f"driver {place.driver!r} of [node.{name}]" + (f" ({limits.device})" if limits.device else "")
    values = {"carrier_hz": e.radio.carrier_hz, "sample_rate_hz": e.radio.sample_rate_hz}
    values |= {"rx_gain_db": place.rx_gain_db}
    if limits.can_transmit:
        values["tx_gain_db"] = place.tx_gain_db
    elif place.role != "eve":
        yield Violation(
            name, "role", f"table [node.{name}]: key 'role': {place.role!r}, accepted: 'eve' by {who}, which can only "
            "receive", "give it a radio that transmits",
        )  # fmt: skip
    for key, value in values.items():
        wrong = limits.refusal(key, value)
        if wrong is not None:
            of_lab = key.endswith("gain_db")
            nearest = min(getattr(limits, key), key=lambda end: abs(end - value))
            where = f"table [node.{name}]" if of_lab else "table [radio]"
            file = f"[node.{name}] of the lab" if of_lab else "[radio] of the experiment"
            detail = f"{where}: key {key!r}: {wrong} by {who}"
            yield Violation(name, key, detail, f"change it in table {file} (nearest: {nearest:g})")
    yield from _too_wide(e, name, who, limits)


def _too_wide(e: Experiment, name: str, who: str, limits: Limits) -> Iterator[Violation]:
    if limits.bandwidth_hz is None:
        return
    rate_hz = e.radio.sample_rate_hz
    sounder = registry.make_stage("probing", e.probing.waveform, e.probing.waveform_options)
    span_hz = float(np.ptp(sounder.frame(rate_hz).subcarrier_hz))
    if span_hz > limits.bandwidth_hz:
        most_hz = rate_hz * limits.bandwidth_hz / span_hz
        yield Violation(
            name, "bandwidth_hz", f"table [radio]: key 'sample_rate_hz': {rate_hz:g}, at which the probes occupy "
            f"{span_hz / 1e6:.3g} MHz, accepted: {limits.bandwidth_hz / 1e6:g} MHz of analogue bandwidth by {who}",
            f"lower sample_rate_hz in table [radio] of the experiment to {most_hz:.4g}",
        )  # fmt: skip


def _driver(group: str, driver: str, where: str) -> Any:
    """Return a driver; raises InputError that names where it was asked for and the installed drivers, or its fault."""
    try:
        return registry.load_driver(group, driver)
    except InputError as exc:
        raise InputError(f"{where}: key 'driver': {exc} (among the installed {group})") from exc
