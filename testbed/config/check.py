"""Checks what the schema of the two files cannot say: names, options and values that have to fit one another."""

from __future__ import annotations

import re
from typing import Any

from testbed.core import registry, schedule
from testbed.core.config import Experiment, Lab, Options, PlacedNode, PlacedSurface, radio_out_of_range
from testbed.core.errors import InputError
from testbed.core.gate import is_identifier
from testbed.core.options import driver_options

MIN_TRAINING_ROUNDS = 20


def check_experiment(e: Experiment, source: str) -> None:
    """Check what the schema cannot say, stage names and options included; raises InputError."""

    def stage(table: str, key: str, name: str, options: Options) -> Any:
        try:
            return registry.make_stage(key, name, options)
        except InputError as exc:
            raise InputError(f"{source}: table [{table}]: {exc}") from exc

    try:
        schedule.parse(e.probing.schedule)
    except InputError as exc:
        raise InputError(f"{source}: table [probing]: key 'schedule': {exc}") from exc
    if (wrong := radio_out_of_range(e.radio)) is not None:
        raise InputError(f"{source}: table [radio]: {wrong}")
    stage("probing", "probing", e.probing.waveform, e.probing.waveform_options)
    stage("probing", "csi", e.probing.estimator, e.probing.estimator_options)
    enhancer = stage("chain", "enhance", e.chain.enhance, e.chain.enhance_options)
    untrained = enhancer.trainable and enhancer.model_id is None
    if untrained and e.training.rounds < MIN_TRAINING_ROUNDS:
        raise InputError(
            f"{source}: table [training]: key 'rounds': {e.training.rounds}; enhance = {e.chain.enhance!r} has to "
            f'learn first: accepted from {MIN_TRAINING_ROUNDS}, or a saved model in enhance_options (model = "FILE")'
        )
    if e.training.rounds and not untrained:
        raise InputError(
            f"{source}: table [training]: key 'rounds': {e.training.rounds}; enhance = {e.chain.enhance!r} has nothing "
            "to learn here: accepted 0"
        )
    stage("chain", "quantize", e.chain.quantize, e.chain.quantize_options)
    stage("chain", "reconcile", e.chain.reconcile, e.chain.reconcile_options)
    if e.beams.policy != "none":
        stage("beams", "beams", e.beams.policy, e.beams.options)
    for name in ("alice", "bob", "eve"):
        place: PlacedNode | None = getattr(e.scene, name)
        if place is None:
            continue
        if (place.position_m is None) == (place.near is None):
            raise InputError(
                f"{source}: table [scene.{name}]: give either 'position_m' or 'near' (with 'offset_wavelengths')"
            )
        if place.near == name or (place.near is not None and name != "eve"):
            raise InputError(f"{source}: table [scene.{name}]: key 'near': only eve may be placed near alice or bob")
    if e.scene.uma is not None and None in (e.scene.alice.position_m, e.scene.bob.position_m):
        raise InputError(f"{source}: table [scene.uma]: alice and bob need a position_m each")
    if e.mode == "private" and e.records.iq:
        raise InputError(
            f"{source}: table [records]: key 'iq': recorded samples give the keys away; accepted in private mode: false"
        )
    for name in ("surface", "attacker"):
        panel: PlacedSurface | None = getattr(e.scene, name)
        if panel is not None and not any(panel.normal):
            raise InputError(f"{source}: table [scene.{name}]: key 'normal': of length 0, accepted: a direction")
    if e.surface.policy != "none":
        try:
            registry.stage_class("policy", e.surface.policy)
        except InputError as exc:
            raise InputError(f"{source}: table [surface]: key 'policy': {exc} (or 'none')") from exc
        try:
            policy = registry.make_stage("policy", e.surface.policy, e.surface.options)
        except InputError as exc:
            raise InputError(f"{source}: table [surface]: key 'options': {exc}") from exc
        if e.surface.is_secret and not policy.can_be_secret:
            raise InputError(
                f"{source}: table [surface]: key 'secret': true, but the patterns of policy = {e.surface.policy!r} "
                "follow from what is public; accepted: false, or policy = 'random'"
            )
        if policy.watches and e.mode == "private":
            raise InputError(
                f"{source}: table [surface]: policy = {e.surface.policy!r} watches the channel, which nodes keep to "
                "themselves in private mode; accepted: mode = 'experiment', or a policy that does not watch"
            )
    if e.surface.policy == "none" and e.surface.is_secret:
        raise InputError(
            f"{source}: table [surface]: key 'secret': true, but policy = 'none' leaves the surface alone; accepted: "
            "false, or policy = 'random'"
        )
    if e.surface.policy != "none" and e.scene.surface is None:
        raise InputError(
            f"{source}: table [surface]: policy = {e.surface.policy!r} needs a table [scene.surface] "
            "(position_m, normal); accepted without it: policy = 'none'"
        )
    if e.surface.policy != "none":
        try:
            policy.survey(e.scene, e.radio.carrier_hz)
        except InputError as exc:
            raise InputError(f"{source}: {exc}") from exc


def check_run(e: Experiment, source: str) -> None:
    """Check what only a run asks of an experiment: a replay has its own number of rounds, and its own CSI.

    Raises InputError where the training leaves no round for a key, or where a saved model was made for other CSI.
    """
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
            f"twice heartbeat_s = {lab.coordinator.heartbeat_s:g} s: one late heartbeat is not a death"
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


def _check_loopback(lab: Lab, source: str) -> None:
    """Raise InputError where links without authentication could be reached from another machine."""
    hosts = {"coordinator": lab.coordinator.host} | {f"node.{n}": p.host for n, p in lab.node.items()}
    hosts |= {"world": lab.world.host} if lab.world is not None else {}
    for table, host in hosts.items():
        if host not in ("localhost", "::1", "[::1]") and not re.fullmatch(r"127(\.[0-9]{1,3}){3}", host):
            raise InputError(
                f"{source}: table [{table}]: key 'host': {host!r} with curve = false, which is accepted on this "
                "machine only (127.0.0.1): anybody on the network could give orders"
            )


def check_mode(e: Experiment, lab: Lab, source: str) -> None:
    """Raise InputError where a lab cannot keep what the experiment's mode promises."""
    if e.mode == "private" and not lab.curve:
        raise InputError(
            f"{source}: key 'curve': false with an experiment of mode = 'private', whose keys would be nobody's: "
            "anybody could stand between Alice and Bob; accepted: true"
        )


def check_drivers(lab: Lab, source: str, names: list[str] | None = None) -> None:
    """Raise InputError where a driver is not installed here, or does not know an option that its table gives it.

    Of the nodes `names`; by default of all that start on this machine, the simulated air included.
    """
    if names is None:
        names = [name for name, place in lab.node.items() if place.local]
        if lab.world is not None and lab.world.local:
            _check_driver("worlds", lab.world.driver, f"{source}: table [world]")
    for name in names:
        place = lab.node[name]
        group = "boards" if place.role == "ris" else "radios"
        _check_driver(group, place.driver, f"{source}: table [node.{name}]")
        try:
            kind = getattr(registry.load_driver(group, place.driver), "options_type", None)
        except ImportError as exc:
            raise InputError(f"{source}: table [node.{name}]: key 'driver': {place.driver!r}: {exc}") from exc
        if kind is not None:
            try:
                driver_options(place.options, kind, name)
            except InputError as exc:
                raise InputError(f"{source}: {exc}") from exc


def _check_driver(group: str, driver: str, where: str) -> None:
    known = registry.driver_names(group)
    if driver not in known:
        raise InputError(
            f"{where}: key 'driver': no {driver!r} among the installed {group}; accepted: {', '.join(known) or 'none'}"
        )
