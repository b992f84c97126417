"""Radios through the real libiio against emulated PlutoSDRs: rounds per second, and how fast samples come in.

Without libiio there is nothing to measure: no rows.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from testbed.bench import BenchRow, interleaved
from testbed.bench.rounds import round_s
from testbed.core import config, registry
from testbed.core.radio import RadioSettings
from testbed.core.world import DriverContext

ROUNDS = 150
SETTLED = 30
"""Rounds before the clock is started."""
SAMPLES = 1 << 20


def run() -> list[BenchRow]:
    """Run `mobile_room` on the `wire` lab, then stream from one emulated device."""
    try:
        import adi  # noqa: F401
    except (ImportError, OSError, AttributeError):
        return []
    return [_rounds(), *_streaming()]


def _rounds() -> BenchRow:
    """Rounds through three drivers, three libiio contexts and the air; the peer is the same run on simulated radios."""
    wire_s, kept = round_s("wire", ROUNDS, SETTLED)
    sim_s, _ = round_s("sim", ROUNDS, SETTLED)
    note = f"{1 / wire_s:.0f} rounds/s, {kept} of {ROUNDS} kept, 64 subcarriers, virtual clock, {os.cpu_count()} cores"
    return BenchRow(
        name="wire rounds", ours_s=wire_s, peer="lab sim", peer_s=sim_s, ratio=sim_s / wire_s, note=note
    )  # fmt: skip


def _streaming() -> list[BenchRow]:
    """Samples per second, ours and `adi.Pluto.rx()`: from a device that costs nothing, then from the air.

    Ours opens a buffer for every reception, so that nothing in it is old; theirs stays open.
    """
    import adi

    world = registry.load_driver("worlds", "sim")
    scene = config.load_experiment("mobile_room").scene
    settings = RadioSettings(carrier_hz=2.4e9, sample_rate_hz=20e6, tx_gain_db=-10.0, rx_gain_db=20.0)
    rows = []
    with tempfile.TemporaryDirectory() as folder, _world(world, scene) as endpoint:
        context = DriverContext(seed=1, world=endpoint, identity=None, state_dir=Path(folder))
        for name, options in (("wire driver", {"canned": True}), ("emulator", {})):
            devices = [world.emulate(who, "pluto", context, options) for who in ("alice", "bob")]
            radio = registry.load_driver("radios", "pluto")("alice", context, uri=devices[0].uri)
            radio.configure(settings)
            peer = adi.Pluto(uri=devices[1].uri)
            peer.sample_rate, peer.rx_lo = round(settings.sample_rate_hz), round(settings.carrier_hz)
            peer.gain_control_mode_chan0, peer.rx_buffer_size = "manual", SAMPLES
            peer._rxadc.set_kernel_buffers_count(1)

            def ours(radio: Any = radio) -> None:
                radio.receive(SAMPLES)

            ours_s, peer_s, ratio = interleaved(ours, peer.rx, 9)
            source = "samples made beforehand" if options else "samples from the simulated air"
            rates = f"{SAMPLES / ours_s / 1e6:.1f} MS/s, theirs {SAMPLES / peer_s / 1e6:.1f}"
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
            radio.close()
            peer.rx_destroy_buffer()
            del peer
            for device in devices:
                device.close()
    return rows


def _world(world: Any, scene: config.Scene) -> Any:
    """Serve an air in a thread."""
    import threading
    from contextlib import contextmanager

    @contextmanager
    def served() -> Any:
        endpoints: list[str] = []
        up = threading.Event()

        def ready(endpoint: str) -> None:
            endpoints.append(endpoint)
            up.set()

        # no way to end it but the process's end: it is a daemon
        threading.Thread(
            target=world.serve, args=("tcp://127.0.0.1:0", None, "virtual", 5.0, ready), daemon=True
        ).start()
        up.wait(10.0)
        world.reset(endpoints[0], None, scene, config.RadioPlan(), 1, 5.0)
        yield endpoints[0]

    return served()
