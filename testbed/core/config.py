"""The tables of the two files a user writes: the lab (which hardware, where) and the experiment (what is done with it).

`testbed.config` reads and checks the files. A field's docstring is its meaning; its declaration gives default and
range.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from testbed.core.gate import Delay, Identifier
from testbed.core.schedule import MAX_TRAIN

Positive = Annotated[float, Meta(gt=0, le=1e18)]
NonNegative = Annotated[float, Meta(ge=0, le=1e18)]
Wait = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Coordinate = Annotated[float, Meta(ge=-1e7, le=1e7)]
Vector = Annotated[list[Coordinate], Meta(min_length=3, max_length=3)]
Box = Annotated[list[Positive], Meta(min_length=3, max_length=3)]
Role = Literal["alice", "bob", "eve", "ris"]
Options = dict[str, Any]


class Table(Struct, forbid_unknown_fields=True, kw_only=True):
    pass


# ---------------------------------------------------------------- experiment


class RadioPlan(Table):
    """Carrier and sample rate of every radio."""

    carrier_hz: Positive = 2.4e9
    sample_rate_hz: Positive = 40e6


class ProbingPlan(Table):
    """Which waveform, in which order, how often."""

    waveform: str = "ofdm"
    waveform_options: Options = field(default_factory=dict)
    estimator: str = "least_squares"
    estimator_options: Options = field(default_factory=dict)
    schedule: str = "A>BE B>AE"
    interval_s: Wait = 0.05
    """Least time from the start of one round to the start of the next."""
    train: Annotated[int, Meta(ge=0, le=MAX_TRAIN)] = 0
    """Number of rounds that are ordered, captured and reported together, at most 3.2 s of them; 0: a number that suits
    the interval. With radios that cannot time their samples, these are at most 0.8 s, and the second slots of all
    rounds of a train follow after the first ones; 0 then means as many rounds as there are intervals in the time that
    these radios need between two slots anyway. With a surface that changes every round and latches no patterns by time,
    every train has one round."""
    turnaround_s: Delay = 100e-6
    """Time between the two slots of a round, in addition to what the radios need."""
    guard_s: Annotated[float, Meta(gt=0, le=3600)] = 4e-6
    """A receiver's window is longer than the expected frame by this much on either side."""


class PlacedNode(Table):
    """Where a node is at time 0, and how it moves."""

    position_m: Vector | None = None
    velocity_m_s: Vector = field(default_factory=lambda: [0.0, 0.0, 0.0])
    near: Literal["alice", "bob"] | None = None
    """In place of position_m: the node stands at `offset_wavelengths` from that node and moves with it."""
    offset_wavelengths: NonNegative = 0.0


class PlacedSurface(Table):
    """Position and direction of the surface; its size is that of the board."""

    position_m: Vector
    normal: Vector
    spacing_wavelengths: Positive = 0.5
    gain_db: float = 0.0
    """Extra gain of the cascaded path over ideal isotropic elements (antennas aimed at the surface, amplification)."""


class Attacker(PlacedSurface):
    """An adversary's surface. It detects the end of every transmission and then takes a fresh random pattern, so that
    the two slots of a round see different channels (arXiv 2108.05497). No node of the run knows of it.
    """

    rows: Annotated[int, Meta(ge=1, le=256)] = 32
    columns: Annotated[int, Meta(ge=1, le=256)] = 32
    phase_bits: Annotated[int, Meta(ge=1, le=8)] = 1
    flips: Literal["after_transmission", "never"] = "after_transmission"
    """after_transmission: it takes a new pattern after every transmission; never: it keeps one random pattern."""
    reaction_s: Delay = 20e-6
    """Time from the end of a transmission to the new pattern."""


class Multipath(Table):
    """Single-bounce scatterers around the nodes."""

    n_scatterers: Annotated[int, Meta(ge=0, le=500)] = 40
    room_m: Box = field(default_factory=lambda: [20.0, 16.0, 3.0])
    """Scatterers are drawn uniformly in this box, whose lower corner is the origin."""
    direct_db: float = -10.0
    """Gain of the direct path relative to free space; -200 where it is blocked (far below any noise)."""
    scatter_loss_db: NonNegative = 6.0
    """Mean loss at a bounce."""
    scatterer_speed_m_s: NonNegative = 0.0
    """Each scatterer moves in a random direction at up to this speed (people walking)."""


class Uma(Table):
    """Scatterers drawn from 3GPP TR 38.901 UMa (V19.2), in place of [scene.multipath]'s; needs the extra `uma`.

    Alice is the base station (25 m high in the standard), Bob the terminal (1.5 m). Delays, powers and the angles at
    both ends are drawn once, by the standard, for Bob's first position, and each path gets a scatterer at a fixed
    place. All later channels follow from the geometry, so that neighbouring snapshots, and an Eve near either end, see
    the same scatterers.
    """

    line_of_sight: bool = False
    pathloss: bool = False
    """Whether the path gain between Alice and Bob is the standard's path loss and shadowing; otherwise gain_db."""
    gain_db: float = -60.0
    """Mean path gain between Alice and Bob at time 0; with pathloss = true added to it (antennas)."""


class Scene(Table):
    """Geometry. A simulated lab simulates it; for a real lab it documents the set-up, and surface designs start from
    it."""

    alice: PlacedNode
    bob: PlacedNode
    eve: PlacedNode | None = None
    surface: PlacedSurface | None = None
    attacker: Attacker | None = None
    """An adversary's surface in the simulated scene; no radio, board or coordinator knows of it."""
    multipath: Multipath = field(default_factory=Multipath)
    uma: Uma | None = None
    """3GPP scatterers, in place of `multipath`."""


class SurfacePlan(Table):
    """Patterns of the surface while the channel is probed."""

    policy: str = "none"
    """none: the surface keeps its pattern; otherwise the name of a policy (`testbed list policy`)."""
    options: Options = field(default_factory=dict)
    secret: bool | None = None
    """Whether patterns are key material: the node that holds the board draws them from the operating system's
    randomness, anew in every run, and never publishes them. By default true for policy "random"; other policies cannot
    be secret."""

    @property
    def is_secret(self) -> bool:
        return self.policy == "random" if self.secret is None else self.secret


class BeamPlan(Table):
    """Which beams Alice and Bob use where their radios have several antennas (simulated ones: `n_antennas`)."""

    policy: str = "none"
    """none: only first antennas are used; otherwise the name of a policy (`testbed list`) by which each end chooses its
    beam."""
    options: Options = field(default_factory=dict)
    sound_every: Annotated[int, Meta(ge=2, le=(1 << 31) - 1)] = 10
    """Every this many rounds, beginning with the first, one round is a sounding of all antennas, which makes no key."""


class ChainPlan(Table):
    """Which stages distil the key, by name."""

    enhance: str = "identity"
    enhance_options: Options = field(default_factory=dict)
    quantize: str = "scalar"
    quantize_options: Options = field(default_factory=dict)
    reconcile: str = "cascade"
    reconcile_options: Options = field(default_factory=dict)


class Training(Table):
    """The rounds that train an enhancer. Bob's CSI of them is published, so no key is made of them."""

    rounds: Annotated[int, Meta(ge=0)] = 0
    """Number of kept rounds at the beginning of the run that train the enhancer; if the training fails, the next rounds
    are used for another attempt."""
    guard_rounds: Annotated[int, Meta(ge=0)] = 20
    """Number of kept rounds after the training that are discarded, because they are correlated with the published ones.

    The health check `training_guard` says how many were needed."""


class Accounting(Table):
    """Block size and assumptions from which a key's length follows."""

    block_rounds: Count = 200
    """Number of kept rounds that are distilled into one key."""
    sacrifice_fraction: Annotated[float, Meta(gt=0, lt=0.5)] = 0.05
    """Share of labels that are published to estimate Bob's error rate; no key is made of them."""
    epsilon_log2: Annotated[int, Meta(ge=8, le=128)] = 64
    """Security parameter: all keys of the run together are 2^−this close to uniform for every Eve of the portfolio."""
    assumed_eve_correlation: Annotated[float, Meta(ge=0, le=1)] | None = None
    """An Eve that was not measured: correlation of one antenna's feature with Alice's. The key has the smaller of the
    lengths against the measured and the assumed Eve. Where neither this nor a distance is given: 0.9."""
    assumed_eve_distance_wavelengths: NonNegative | None = None
    """In place of a correlation: her least distance from either end, in scattering from all sides."""
    assumed_eve_antennas: Annotated[int, Meta(ge=1, le=64)] = 1
    entropy: Literal["estimated", "modelled"] = "estimated"
    """estimated: −log2 of the confidence limit of the share of labels that the best Eve of the portfolio guesses.
    modelled: from the log-loss of her predictions, assuming that labels are independent given what she knows; it gives
    more bits, but only for long blocks. The report states which rule was used."""

    def __post_init__(self) -> None:
        if self.assumed_eve_correlation is not None and self.assumed_eve_distance_wavelengths is not None:
            raise ValueError(
                "'assumed_eve_correlation' and 'assumed_eve_distance_wavelengths' are both given; accepted: one of them"
            )


class Records(Table):
    """What a run records in addition."""

    iq: bool = False
    """Record every captured IQ block as SigMF (large)."""


Share = Annotated[float, Meta(ge=0, le=0.5)]
PerThousand = Annotated[float, Meta(ge=0, le=1000)]
Outage = Annotated[float, Meta(gt=0, le=600)]


class Faults(Table):
    """Faults of networks and processes that `testbed run` injects on purpose. They are drawn from a seed, so that a
    repetition has the same faults in the same rounds. Faults of radios and boards are options of their emulators, in
    the lab's [world.emulators].
    """

    seed: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    """Seed of the faults; default: the experiment's."""
    nodes: list[str] = field(default_factory=list)
    """Names of the nodes that have faults, all of them local; if none is named, every local node that takes part."""
    links: Annotated[list[Literal["control", "discussion", "air"]], Meta(min_length=1)] = field(
        default_factory=lambda: ["control"]
    )
    """Which of a node's connections have faults. control: to the coordinator; discussion: from Bob to Alice; air: to
    the simulated air. If the discussion breaks, the block under way fails; if the air breaks, a round or the device is
    lost.
    """
    delay_s: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Delay of every message."""
    jitter_s: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Largest additional random delay; the order of messages is kept."""
    loss: Share = 0.0
    """Share of messages that are lost without a break of the connection (not on the air, whose messages have parts)."""
    duplication: Share = 0.0
    """Share of messages that arrive twice. On authenticated links, which do not accept a repeated message, the
    connection is reset instead."""
    reordering: Share = 0.0
    """Share of messages that arrive after the next one; on authenticated links, the connection is reset instead."""
    resets: PerThousand = 0.0
    """Resets of all of a node's connections, mean number per 1000 rounds."""
    partitions: PerThousand = 0.0
    """Outages of a node's connections, mean number per 1000 rounds: no data pass, and neither end is notified."""
    partition_s: Outage = 2.0
    """Length of an outage."""
    pauses: PerThousand = 0.0
    """Suspensions of a node's process (SIGSTOP, then SIGCONT), mean number per 1000 rounds."""
    pause_s: Outage = 2.0
    """Length of a suspension."""
    kills: PerThousand = 0.0
    """Kills of a node's process (SIGKILL), mean number per 1000 rounds; the run restarts it."""
    clock_steps: PerThousand = 0.0
    """Steps of the coordinator's time of day, forward and back in turn, mean number per 1000 rounds."""
    clock_step_s: Annotated[float, Meta(gt=0, le=1e9)] = 3600.0
    """Length of a step."""
    disk_full: PerThousand = 0.0
    """Times in which the run finds its disk full, mean number per 1000 rounds."""
    disk_full_s: Outage = 2.0
    """Duration of such a time."""


class Experiment(Table):
    """experiment.toml"""

    schema: Literal[1]
    title: str
    scene: Scene
    mode: Literal["experiment", "private"] = "experiment"
    """experiment: the coordinator records CSI and raw bits, so that the keys are for research only and must not be
    used; private: nodes report metrics only."""
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
    faults: Faults | None = None
    """Without this table, no faults are injected."""


class ChainFile(Table):
    """chain.toml: how keys are made from recorded channels. For a missing table, the source's recommendation is
    used."""

    schema: Literal[1] = 1
    title: str = ""
    seed: Annotated[int, Meta(ge=0, le=2**62)] | None = None
    chain: ChainPlan | None = None
    accounting: Accounting | None = None
    training: Training | None = None
    """Without this table, a file that states [chain] has no training."""


# ---------------------------------------------------------------- lab


class CoordinatorPlace(Table):
    """Address of the coordinator, and how long it waits."""

    host: str = "127.0.0.1"
    port: Port = 0
    """0: a free port is chosen; possible only where every node is local."""
    local: bool = True
    join_timeout_s: Wait = 30.0
    """How long the coordinator waits for all nodes to join."""
    heartbeat_s: Wait = 0.5
    lost_after_s: Wait = 3.0
    """A node silent for this long is lost."""
    rejoin_timeout_s: Wait = 30.0
    """A lost or silent Alice or Bob may come back within this time; then the run stops."""
    operation_timeout_s: Wait = 10.0
    """Longest time of one operation of one node (a probe, a pattern)."""
    distil_timeout_s: Wait = 180.0
    """Longest time of the public discussion of one block."""
    disk_wait_s: Wait = 3600.0
    """A run whose disk is full is paused, and ends in order where there is no space after so long."""


class WorldPlace(Table):
    """The simulated air."""

    driver: str = "sim"
    host: str = "127.0.0.1"
    port: Port = 0
    local: bool = True
    pace: Literal["virtual", "wall"] = "virtual"
    """virtual: as fast as the processes go; wall: no faster than real time."""
    peer_timeout_s: Wait = 4.0
    """A radio is dropped when another one has waited for this long (wall time) for it to declare what it sends.
    It must be less than the 5 s after which a reception fails."""
    emulators: dict[str, Options] = field(default_factory=dict)
    """By node: options of an emulated device on this air (port, serial number, imperfections, faults), which the node's
    driver reaches through its vendor's library."""


class Floors(Table):
    """Least requirements of a node for every run, whatever the coordinator orders: [node.NAME.floors].

    A coordinator must not be able to make a node accept weak keys, so the node refuses runs below these floors. By
    default, private mode has the floors named below; experiment mode, whose keys are for research, has only those of
    `modes` and `key_bits`.
    """

    epsilon_log2: Annotated[int, Meta(ge=8, le=128)] | None = None
    """Least accounting.epsilon_log2: keys are 2^−this close to uniform, or closer. Private mode: 32."""
    assumed_eve_correlation: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Least accounting.assumed_eve_correlation, where an experiment gives one. Private mode: 0.2."""
    assumed_eve_distance_wavelengths: NonNegative | None = None
    """Largest accounting.assumed_eve_distance_wavelengths, where an experiment gives one. Private mode: 1."""
    assumed_eve_antennas: Annotated[int, Meta(ge=1, le=64)] | None = None
    """Least accounting.assumed_eve_antennas. Private mode: 1."""
    sacrifice_fraction: Annotated[float, Meta(ge=0, lt=0.5)] | None = None
    """Least accounting.sacrifice_fraction: fewer published bits measure Eve too inexactly. Private mode: 0.02."""
    key_bits: Annotated[int, Meta(ge=1, le=1 << 20)] = 128
    """Least length of a key: a block that would give a shorter one gives none."""
    modes: Annotated[list[Literal["experiment", "private"]], Meta(min_length=1)] = field(
        default_factory=lambda: ["experiment", "private"]
    )
    """Modes of the runs that this node takes part in."""


class NodePlace(Table):
    """One daemon and its device."""

    role: Role
    driver: str
    options: Options = field(default_factory=dict)
    """Passed to the driver: URI, serial number, impairments of a simulated device …"""
    local: bool = True
    """true: `testbed run` starts this daemon; false: the user starts `testbed node` on its machine."""
    host: str = "127.0.0.1"
    """Address at which this node can be reached (Alice's discussion socket)."""
    port: Port = 0
    tx_gain_db: float = 0.0
    rx_gain_db: float = 0.0
    correction_ppm: Annotated[float, Meta(ge=-200, le=200)] | None = None
    """By how much this device's crystal is too fast; its carrier is set lower by the same amount. Default: the value
    that `testbed doctor` measured for the device with this serial number, or 0."""
    calibrated: bool = False
    """Correct the CSI for this device's own transmit and receive responses, as measured by `doctor --cable` at the
    run's carrier and rate. To be set for both Alice and Bob, or for neither."""
    private: bool = False
    """This node never reports CSI or raw bits: it refuses to take part in a run of experiment mode."""
    floors: Floors = field(default_factory=Floors)


class Lab(Table):
    """lab.toml"""

    schema: Literal[1]
    name: Annotated[Identifier, Meta(max_length=40)]
    node: dict[str, NodePlace]
    coordinator: CoordinatorPlace = field(default_factory=CoordinatorPlace)
    world: WorldPlace | None = None
    curve: bool = True
    """Authenticate and encrypt every link; false only on one machine, and in private mode only with wegman_carter."""
    wegman_carter: bool = False
    """Authenticate the discussion between Alice and Bob, in addition to curve or in its place, against an attacker of
    any computing power: one-time tags from a secret that both share beforehand (`testbed keys pool`). 256 bits of every
    hashed string refill it and are not part of the key."""

    def by_role(self, role: str) -> str | None:
        """Return the name of the node with this role, or None."""
        return next((name for name, place in self.node.items() if place.role == role), None)


def radio_out_of_range(radio: RadioPlan) -> str | None:
    """Return one line that names a setting beyond the range of every radio; None where there is none."""
    for key, low, high in (("carrier_hz", 1e3, 1e12), ("sample_rate_hz", 1e3, 1e11)):
        value = getattr(radio, key)
        if not low <= value <= high:
            return f"key {key!r}: {value:g} Hz, accepted: {low:g} to {high:g} Hz"
    return None


def is_rehearsal(lab: Lab, experiment: Experiment) -> bool:
    """Return whether a run follows from its seed (simulated air, experiment mode), so that no key is delivered."""
    return lab.world is not None and experiment.mode == "experiment"


def planned_blocks(experiment: Experiment) -> int:
    """Return how many blocks a run may distil, which is the number of blocks that share ε."""
    t, size = experiment.training, experiment.accounting.block_rounds
    rounds = experiment.rounds - (t.rounds + t.guard_rounds if t.rounds else 0)
    return max(1, -(-rounds // size))


def to_dict(config: Struct) -> dict[str, Any]:
    """Return a configuration as plain values (for messages and provenance)."""
    out: dict[str, Any] = msgspec.to_builtins(config)
    return out
