"""The two files a user writes: the lab (which hardware, where) and the experiment (what is done with it).

Strict: an unknown key, a missing table or a value of the wrong type or range raises InputError in one line that names
file, table and key and says what is accepted. No number may be inf or nan: records are JSON, which
has neither. `json_schema` exports both schemas for editors.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec
from msgspec import Meta, Struct, field

from testbed.core import registry, schedule
from testbed.core.errors import InputError
from testbed.core.gate import Delay, Identifier, is_identifier

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NonNegative = Annotated[float, Meta(ge=0, le=1e18)]
Wait = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Coordinate = Annotated[float, Meta(ge=-1e7, le=1e7)]
Vector = Annotated[list[Coordinate], Meta(min_length=3, max_length=3)]
Box = Annotated[list[Positive], Meta(min_length=3, max_length=3)]
MIN_TRAINING_ROUNDS = 20
Role = Literal["alice", "bob", "eve", "ris"]
Options = dict[str, Any]


class _Table(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


# ---------------------------------------------------------------- experiment


class RadioPlan(_Table):
    """What every radio is tuned to."""

    carrier_hz: Positive = 2.4e9
    sample_rate_hz: Positive = 40e6


class ProbingPlan(_Table):
    """Which waveform, in which order, how often."""

    waveform: str = "ofdm"
    waveform_options: Options = field(default_factory=dict)
    estimator: str = "least_squares"
    estimator_options: Options = field(default_factory=dict)
    schedule: str = "A>BE B>AE"
    interval_s: Wait = 0.05
    """From the start of one round to the start of the next, at least."""
    turnaround_s: Delay = 100e-6
    """Between the two slots of a round, on top of what the radios need."""
    guard_s: Annotated[float, Meta(gt=0, le=3600)] = 4e-6
    """A receiver listens this much longer on either side of the expected frame."""


class PlacedNode(_Table):
    """Where a node is at time 0, and how it moves."""

    position_m: Vector | None = None
    velocity_m_s: Vector = field(default_factory=lambda: [0.0, 0.0, 0.0])
    near: Literal["alice", "bob"] | None = None
    """Instead of position_m: at `offset_wavelengths` from that node, moving with it."""
    offset_wavelengths: NonNegative = 0.0


class PlacedSurface(_Table):
    """Where the surface hangs and which way it looks; its size is the board's."""

    position_m: Vector
    normal: Vector
    spacing_wavelengths: Positive = 0.5
    gain_db: float = 0.0
    """Extra gain of the cascaded path over ideal isotropic elements (antennas aimed at the surface, amplification)."""


class Attacker(PlacedSurface):
    """An adversary's surface. It hears every transmission end and then takes a fresh random pattern, so that the two
    slots of a round see different channels (arXiv 2108.05497); nothing of it is told to anybody in the run.
    """

    rows: Annotated[int, Meta(ge=1, le=256)] = 32
    columns: Annotated[int, Meta(ge=1, le=256)] = 32
    phase_bits: Annotated[int, Meta(ge=1, le=8)] = 1
    flips: Literal["after_transmission", "never"] = "after_transmission"
    """never: it holds one random pattern, i.e. it is there and does nothing."""
    reaction_s: Delay = 20e-6
    """From the end of a transmission to the new pattern."""


class Multipath(_Table):
    """Single-bounce scatterers around the nodes."""

    n_scatterers: Annotated[int, Meta(ge=0, le=500)] = 40
    room_m: Box = field(default_factory=lambda: [20.0, 16.0, 3.0])
    """Scatterers are drawn uniformly in this box, whose lower corner is the origin."""
    direct_db: float = -10.0
    """Direct path relative to free space; -200 where it is blocked (far below any noise, and still a number)."""
    scatter_loss_db: NonNegative = 6.0
    """Mean loss at a bounce."""
    scatterer_speed_m_s: NonNegative = 0.0
    """Each scatterer moves in a random direction at up to this speed (people walking)."""


class Uma(_Table):
    """Scatterers drawn from 3GPP TR 38.901 UMa (V19.2), in place of [scene.multipath]'s; needs the extra `uma`.

    Alice is the base station (25 m high in the standard), Bob the terminal (1.5 m). Delays, powers and the angles at
    both ends are the standard's, drawn once for Bob's first position; then the bodies stand still and geometry does
    the rest, so that neighbouring snapshots, and an Eve near either end, belong to the same scatterers.
    """

    line_of_sight: bool = False
    pathloss: bool = False
    """Whether the path gain between Alice and Bob is the standard's path loss and shadowing; otherwise gain_db."""
    gain_db: float = -60.0
    """Mean path gain between Alice and Bob at time 0; with pathloss = true added to it (antennas)."""


class Scene(_Table):
    """Geometry. A simulated lab builds it; on a real lab it documents the bench and starts the designers."""

    alice: PlacedNode
    bob: PlacedNode
    eve: PlacedNode | None = None
    surface: PlacedSurface | None = None
    attacker: Attacker | None = None
    """A simulated lab puts it up; no radio, board or coordinator knows of it."""
    multipath: Multipath = field(default_factory=Multipath)
    uma: Uma | None = None
    """Instead of multipath."""


class SurfacePlan(_Table):
    """What the surface does while the channel is probed."""

    policy: str = "none"
    """none: it is left alone; otherwise the name of a policy (`testbed list`)."""
    options: Options = field(default_factory=dict)


class BeamPlan(_Table):
    """Which beams Alice and Bob use where their radios have several antennas (simulated ones: `n_antennas`)."""

    policy: str = "none"
    """none: first antennas only; otherwise the name of a policy (`testbed list`): each end finds its own beam."""
    options: Options = field(default_factory=dict)
    sound_every: Annotated[int, Meta(ge=2)] = 10
    """Every so many rounds, from the first one on, all antennas are sounded instead; no key is made of these rounds."""


class ChainPlan(_Table):
    """Which stages distil the key, by name."""

    enhance: str = "identity"
    enhance_options: Options = field(default_factory=dict)
    quantize: str = "scalar"
    quantize_options: Options = field(default_factory=dict)
    reconcile: str = "cascade"
    reconcile_options: Options = field(default_factory=dict)


class Training(_Table):
    """The rounds from which a trainable enhancer learns. Bob's CSI of them is published: they never enter a key."""

    rounds: Annotated[int, Meta(ge=0)] = 0
    """Kept rounds at the beginning of the run; tried again with the next ones where the training fails."""
    guard_rounds: Annotated[int, Meta(ge=0)] = 20
    """Kept rounds after them that are thrown away: as many as the channel needs to forget what was published.

    The health table says how many it needed."""


class Accounting(_Table):
    """How bits become key bits, and how many."""

    block_rounds: Count = 200
    """Kept rounds that are distilled together."""
    sacrifice_fraction: Annotated[float, Meta(gt=0, lt=0.5)] = 0.1
    """Share of raw bits published to estimate Bob's and Eve's error rates; they are gone."""
    epsilon_log2: Annotated[int, Meta(ge=8, le=128)] = 64
    """Security parameter: the key is 2^−this close to uniform for Eve."""
    assumed_eve_error_rate: Annotated[float, Meta(ge=0, le=0.5)] = 0.15
    """Used where no Eve was measured: the error rate of her best guess of a raw bit. The default is a little below what
    an Eve at a twentieth of a wavelength reaches in the simulated hall."""
    entropy: Literal["estimated", "modelled"] = "estimated"
    """estimated: from the strings alone; on long ones SP 800-90B's bounds take up to a fifth of ideal bits.
    modelled: for quantizers with equally likely cells only. Assumes that features are jointly Gaussian at Alice and Eve
    and that probes are independent but for what our predictors find; her correlation is measured on whole published
    symbols, or follows from `assumed_eve_error_rate`. The report says which was used."""


class Records(_Table):
    """What is written."""

    iq: bool = False
    """Record every captured IQ block as SigMF (large)."""


class Experiment(_Table):
    """experiment.toml"""

    schema: Literal[1]
    title: str
    scene: Scene
    mode: Literal["experiment", "private"] = "experiment"
    """experiment: CSI and raw bits are recorded by the coordinator, so keys are for science, not for use;
    private: nodes report metrics only."""
    rounds: Count = 600
    seed: Annotated[int, Meta(ge=0, le=2**62)] = 1
    radio: RadioPlan = field(default_factory=RadioPlan)
    probing: ProbingPlan = field(default_factory=ProbingPlan)
    surface: SurfacePlan = field(default_factory=SurfacePlan)
    beams: BeamPlan = field(default_factory=BeamPlan)
    chain: ChainPlan = field(default_factory=ChainPlan)
    training: Training = field(default_factory=Training)
    accounting: Accounting = field(default_factory=Accounting)
    records: Records = field(default_factory=Records)


# ---------------------------------------------------------------- lab


class CoordinatorPlace(_Table):
    """Where the coordinator listens, and how patient it is."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0: a free port is chosen; possible only where every node is local."""
    local: bool = True
    join_timeout_s: Wait = 30.0
    """For all nodes to say hello."""
    heartbeat_s: Wait = 0.5
    lost_after_s: Wait = 3.0
    """A node silent for this long is lost."""
    rejoin_timeout_s: Wait = 5.0
    """A lost Alice or Bob may come back within this time; then the run stops."""
    operation_timeout_s: Wait = 10.0
    """For one operation of one node (a probe, a pattern)."""
    distil_timeout_s: Wait = 60.0
    """For the public discussion of one block."""


class WorldPlace(_Table):
    """The simulated air."""

    driver: str = "sim"
    host: str = "127.0.0.1"
    port: Port = 0
    local: bool = True
    pace: Literal["virtual", "wall"] = "virtual"
    """virtual: as fast as the processes go; wall: no faster than real time."""
    peer_timeout_s: Wait = 4.0
    """A radio that has not declared what it sends for this long (wall time) while another waits is dropped.
    Less than the 5 s after which a reception gives up."""
    emulators: dict[str, Options] = field(default_factory=dict)
    """By node: an emulated device on this air, which the node's driver reaches through its vendor's library. Its
    options are the emulator's (port, serial number, imperfections, faults)."""


class Floors(_Table):
    """What a node demands of every run, whatever the coordinator asks for: [node.NAME.floors]. It refuses less.

    A coordinator schedules and must not be able to talk a node into weak keys. Where nothing is given, private mode
    (keys for use) has the floors named below, experiment mode (keys for science) only those of `modes` and `key_bits`.
    """

    epsilon_log2: Annotated[int, Meta(ge=8, le=128)] | None = None
    """Least accounting.epsilon_log2: keys are 2^−this close to uniform, or closer. Private mode: 32."""
    assumed_eve_error_rate: Annotated[float, Meta(ge=0, le=0.5)] | None = None
    """Largest accounting.assumed_eve_error_rate: an Eve who is assumed to err more often knows less. Private: 0.25."""
    sacrifice_fraction: Annotated[float, Meta(ge=0, lt=0.5)] | None = None
    """Least accounting.sacrifice_fraction: fewer published bits measure Eve too badly. Private mode: 0.02."""
    key_bits: Annotated[int, Meta(ge=1, le=1 << 20)] = 128
    """A shorter key is none: the block then ends without one."""
    modes: Annotated[list[Literal["experiment", "private"]], Meta(min_length=1)] = field(
        default_factory=lambda: ["experiment", "private"]
    )
    """Modes of runs that this node takes part in."""


class NodePlace(_Table):
    """One daemon and its device."""

    role: Role
    driver: str
    options: Options = field(default_factory=dict)
    """Passed to the driver: URI, serial number, impairments of a simulated device …"""
    local: bool = True
    """Started by `testbed run`; false: somebody starts `testbed node` there."""
    host: str = "127.0.0.1"
    """Where this node can be reached (Alice's discussion socket)."""
    port: Port = 0
    tx_gain_db: float = 0.0
    rx_gain_db: float = 0.0
    private: bool = False
    """This node never gives away CSI or raw bits: it refuses to take part in an experiment-mode run."""
    floors: Floors = field(default_factory=Floors)


class Lab(_Table):
    """lab.toml"""

    schema: Literal[1]
    name: Annotated[Identifier, Meta(max_length=40)]
    node: dict[str, NodePlace]
    coordinator: CoordinatorPlace = field(default_factory=CoordinatorPlace)
    world: WorldPlace | None = None
    curve: bool = True
    """Authenticate and encrypt every link; false only to debug, on one machine, in experiment mode."""

    def by_role(self, role: str) -> str | None:
        """Return the name of the node with this role, or None."""
        return next((name for name, place in self.node.items() if place.role == role), None)


# ---------------------------------------------------------------- reading

T = TypeVar("T", Experiment, Lab)
_BUNDLED = {Experiment: "experiments", Lab: "labs"}


def bundled(kind: type[Experiment] | type[Lab]) -> dict[str, Path]:
    """Return the bundled files of a kind by name."""
    folder = Path(str(files("testbed"))) / "bundled" / _BUNDLED[kind]
    return {p.stem: p for p in sorted(folder.glob("*.toml"))}


def find(kind: type[Experiment] | type[Lab], name: str) -> Path:
    """Return the path of a file given by path or bundled name; raises InputError naming the bundled ones."""
    path = Path(name)
    if path.is_file():
        return path
    known = bundled(kind)
    if name in known:
        return known[name]
    what = "experiment" if kind is Experiment else "lab"
    raise InputError(f"{name}: no such {what} file; bundled: {', '.join(known)}")


def load_experiment(name: str) -> Experiment:
    """Read and check an experiment file, stage names and options included."""
    path = find(Experiment, name)
    experiment = _load(path, Experiment)
    check_experiment(experiment, str(path))
    return experiment


def load_lab(name: str) -> Lab:
    """Read and check a lab file."""
    path = find(Lab, name)
    lab = _load(path, Lab)
    _check_lab(lab, str(path))
    return lab


def _load(path: Path, kind: type[T]) -> T:
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{path}: not UTF-8 text at byte {exc.start}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise InputError(f"{path}: not TOML: {exc}") from exc
    return convert(raw, kind, str(path))


def convert(raw: dict[str, Any], kind: type[T], source: str) -> T:
    """Check a parsed file against its schema; raises InputError in one line."""
    _refuse_non_finite(raw, source, [])
    if kind is Lab and isinstance(raw.get("node"), dict):
        # one by one first: the error for a whole dict does not say which of its tables is wrong
        for name, table in raw["node"].items():
            _convert(table, NodePlace, source, [f"node.{name}"])
    return _convert(raw, kind, source, [])


def _refuse_non_finite(value: Any, source: str, keys: list[str]) -> None:
    """Raise InputError for the first inf or nan in a parsed file, drivers' and stages' options included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            _refuse_non_finite(inner, source, [*keys, str(key)])
    elif isinstance(value, list):
        for inner in value:
            _refuse_non_finite(inner, source, keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{source}: {_place(keys)}: {value} given, accepted: finite numbers")


def _place(keys: list[str]) -> str:
    """Say where in a file a key is."""
    table, key = ".".join(keys[:-1]), keys[-1] if keys else "file"
    return f"{f'table [{table}]' if table else 'top level'}: key {key!r}"


C = TypeVar("C", bound=Struct)


def _convert(raw: Any, kind: type[C], source: str, above: list[str]) -> C:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as exc:
        raise InputError(f"{source}: {_explain(str(exc), kind, above)}") from exc


def _choices(hint: Any) -> list[Any]:
    """Return the values of a Literal, also of one that may be None; none for any other type."""
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [value for option in get_args(hint) if get_origin(option) is Literal for value in get_args(option)]


def _type_at(kind: Any, keys: list[str]) -> Any:
    """Follow a path of keys through nested tables; None where it leaves them."""
    current: Any = kind
    for key in keys:
        if not (isinstance(current, type) and issubclass(current, Struct)):
            return None
        hints = {f.name: f.type for f in msgspec.structs.fields(current)}
        current = hints.get(key)
        structs = [o for o in getattr(current, "__args__", ()) if isinstance(o, type) and issubclass(o, Struct)]
        if structs:
            current = structs[0]
    return current


def _explain(message: str, kind: Any, above: list[str]) -> str:
    """Turn msgspec's message into `table [table]: key 'key': what is wrong; accepted: …`."""
    text, _, where = message.partition(" - at `")
    # the place in a list is left out: the list has the key
    inner = [k for k in re.sub(r"\[(\d+|\.\.\.)\]", "", where.rstrip("`").lstrip("$")).split(".") if k]
    keys = above + inner
    unknown = re.match(r"Object contains unknown field `(.+)`", text)
    missing = re.match(r"Object missing required field `(.+)`", text)
    if unknown or missing:
        table = f"table [{'.'.join(keys)}]" if keys else "top level"
        found = _type_at(kind, inner)
        accepted = sorted(f.name for f in msgspec.structs.fields(found)) if found is not None else []
        if missing:
            return f"{table}: missing {missing[1]!r}; accepted keys: {', '.join(accepted)}"
        assert unknown is not None
        near = difflib.get_close_matches(unknown[1], accepted, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{table}: unknown key {unknown[1]!r}{hint}; accepted: {', '.join(accepted)}"
    choices = _choices(_type_at(kind, inner))
    values = f"; accepted: {', '.join(map(repr, choices))}" if choices else ""
    return f"{_place(keys)}: {text[0].lower()}{text[1:]}{values}"


def radio_out_of_range(radio: RadioPlan) -> str | None:
    """Return what no radio can be tuned to, in one line; None where there may be one."""
    for key, low, high in (("carrier_hz", 1e3, 1e12), ("sample_rate_hz", 1e3, 1e11)):
        value = getattr(radio, key)
        if not low <= value <= high:
            return f"key {key!r}: {value:g} Hz, accepted: {low:g} to {high:g} Hz"
    return None


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
        if policy.watches and e.mode == "private":
            raise InputError(
                f"{source}: table [surface]: policy = {e.surface.policy!r} watches the channel, which nodes keep to "
                "themselves in private mode; accepted: mode = 'experiment', or a policy that does not watch"
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


def _check_lab(lab: Lab, source: str) -> None:
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


def driver_options(values: Options, kind: type[C], node: str) -> C:
    """Return the options of a node's lab table as the driver's own `kind`.

    Raises InputError naming the table, the key and what is accepted.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as exc:
        accepted = ", ".join(f.name for f in msgspec.structs.fields(kind))
        raise InputError(f"table [node.{node}.options]: {exc}; accepted keys: {accepted}") from exc


def json_schema(kind: type[Experiment] | type[Lab]) -> dict[str, Any]:
    """Return the JSON Schema of a file kind."""
    return msgspec.json.schema(kind)


def to_dict(config: Struct) -> dict[str, Any]:
    """Return a configuration as plain values (for messages and provenance)."""
    out: dict[str, Any] = msgspec.to_builtins(config)
    return out


def state_root() -> Path:
    """Return the folder for identities and key stores: $TESTBED_STATE, or the user's state folder."""
    if "TESTBED_STATE" in os.environ:
        return Path(os.environ["TESTBED_STATE"])
    return Path(os.environ.get("XDG_STATE_HOME", "~/.local/state")).expanduser() / "ris-skg-testbed"
