"""Radios through the real libiio and emulated PlutoSDRs: rounds per second, turn-around, sample rate.

Without libiio nothing can be measured, and there are no rows.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from testbed import config
from testbed.benchmarks import BenchRow, interleaved
from testbed.benchmarks.rounds import round_s
from testbed.core import registry
from testbed.core.config import RadioPlan, Scene
from testbed.core.radio import RadioSettings
from testbed.core.types import IqBlock
from testbed.core.world import DriverContext

ROUNDS = 150
SETTLED = 30
"""Rounds before the clock starts."""
_EXPERIMENT = "onair_first_key"
"""An experiment that an unmodified Pluto can run."""
_INTERVAL_S = 1e-3
"""Interval asked for: the experiment's own, a quarter of a second, leaves no room for trains."""
SAMPLES = 1 << 20
SETTINGS = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=-10.0, rx_gain_db=20.0)


def run() -> list[BenchRow]:
    """Run `onair_first_key` on the `wire` lab, then use emulated devices one by one."""
    try:
        import adi  # noqa: F401
    except (ImportError, OSError, AttributeError):
        return []
    return [*_rounds(), _turnaround(), *_streaming()]


def _rounds() -> list[BenchRow]:
    """Time rounds with three drivers and libiio contexts and the air, in the trains that the interval gives.

    The peers are the same run on simulated radios, which time their samples, and on the same lab in trains of one.
    """
    ours_s, kept = round_s("wire", ROUNDS, SETTLED, _EXPERIMENT, interval_s=_INTERVAL_S)
    alone_s, alone_kept = round_s("wire", ROUNDS, SETTLED, _EXPERIMENT, interval_s=_INTERVAL_S, train=1)
    sim_s, _ = round_s("sim", ROUNDS, SETTLED, _EXPERIMENT, interval_s=_INTERVAL_S)
    where = f"24 subcarriers, virtual clock, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    of_sim = f"{1 / ours_s:.0f} rounds/s, {kept} of {ROUNDS} kept, a round every {_INTERVAL_S * 1e3:g} ms, {where}"
    of_one = f"{1 / alone_s:.0f} rounds/s in trains of one, {alone_kept} of {ROUNDS} kept"
    return [
        BenchRow(name="wire rounds", ours_s=ours_s, peer="lab sim", peer_s=sim_s, ratio=sim_s / ours_s, note=of_sim),
        BenchRow(
            name="wire rounds in trains", ours_s=ours_s, peer="trains of one", peer_s=alone_s, ratio=alone_s / ours_s,
            note=of_one,
        ),
    ]  # fmt: skip


def _streaming() -> list[BenchRow]:
    """Return samples per second, ours and `adi.Pluto.rx()`, from a device with stored samples, then from the air.

    Ours opens a buffer for every reception, so that it contains no old samples; the peer's stays open.
    """
    rows = []
    for name, options in (("wire driver", {"canned": True}), ("emulator", {})):
        with _radio_and_peer(SAMPLES, options) as (radio, peer):

            def ours(radio: Any = radio) -> None:
                radio.receive(SAMPLES)

            ours_s, peer_s, ratio = interleaved(ours, peer.rx, 9)
        source = "stored samples" if options else "samples from the simulated air"
        rates = f"{SAMPLES / ours_s / 1e6:.1f} MS/s, the peer {SAMPLES / peer_s / 1e6:.1f}"
        rows.append(
            BenchRow(
                name=name,
                ours_s=ours_s,
                peer="adi.Pluto.rx()",
                peer_s=peer_s,
                ratio=ratio,
                note=f"{rates}; blocks of {SAMPLES}, {source}",
            )
        )
    return rows


def _turnaround() -> BenchRow:
    """Time one radio's slot on the host: transmit a frame, fall silent, receive the samples that follow.

    The peer does the same with pyadi-iio: it must close its buffer, which would otherwise return old samples.
    """
    plan = config.load_experiment("mobile_room").probing
    frame = registry.make_stage("probing", plan.waveform, plan.waveform_options).frame(SETTINGS.sample_rate_hz)
    block = IqBlock(frame.samples[None, :], frame.sample_rate_hz, 0.0)
    n_samples = frame.samples.size
    with _radio_and_peer(n_samples, {}) as (radio, peer):

        def ours() -> None:
            radio.transmit(block)
            radio.silence()
            radio.receive(n_samples)

        levels = 2**14 * frame.samples
        peer.tx_cyclic_buffer = True

        def theirs() -> None:
            peer.tx(levels)
            peer.tx_destroy_buffer()
            peer.rx()
            peer.rx_destroy_buffer()

        ours_s, peer_s, ratio = interleaved(ours, theirs, 51)
    note = f"{1e3 * ours_s:.1f} ms a slot: transmit, silence, receive {n_samples} samples; virtual clock, one radio"
    return BenchRow(
        name="turn-around", ours_s=ours_s, peer="pyadi-iio", peer_s=peer_s, ratio=ratio, note=note
    )  # fmt: skip


@contextmanager
def _radio_and_peer(n_samples: int, options: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield our driver and pyadi-iio's, each with its own emulated device, both receiving `n_samples` per block."""
    import adi

    world = registry.load_driver("worlds", "sim")
    scene = config.load_experiment("mobile_room").scene
    with tempfile.TemporaryDirectory() as folder, _world(world, scene) as endpoint, ExitStack() as stack:
        context = DriverContext(seed=1, world=endpoint, identity=None, state_dir=Path(folder))
        devices = [world.emulate(who, "pluto", context, options) for who in ("alice", "bob")]
        for device in devices:
            stack.callback(device.close)
        radio = stack.enter_context(registry.load_driver("radios", "pluto")("alice", context, uri=devices[0].uri))
        radio.configure(SETTINGS)
        peer = adi.Pluto(uri=devices[1].uri)
        peer.sample_rate = round(SETTINGS.sample_rate_hz)
        peer.rx_lo = peer.tx_lo = round(SETTINGS.carrier_hz)
        peer.gain_control_mode_chan0, peer.rx_buffer_size = "manual", n_samples
        peer._rxadc.set_kernel_buffers_count(1)
        # libiio crashes if a context is destroyed before its buffers
        stack.callback(peer.tx_destroy_buffer)
        stack.callback(peer.rx_destroy_buffer)
        yield radio, peer


def _world(world: Any, scene: Scene) -> Any:
    """Serve a simulated air in a thread."""
    import threading

    @contextmanager
    def served() -> Any:
        endpoints: list[str] = []
        up = threading.Event()

        def ready(endpoint: str) -> None:
            endpoints.append(endpoint)
            up.set()

        # only the end of the process ends it, as it is a daemon
        threading.Thread(
            target=world.serve, args=("tcp://127.0.0.1:0", None, "virtual", 5.0, ready), daemon=True
        ).start()
        up.wait(10.0)
        world.reset(endpoints[0], None, scene, RadioPlan(), 1, 5.0)
        yield endpoints[0]

    return served()
