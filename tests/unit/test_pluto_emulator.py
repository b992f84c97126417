"""The emulated Pluto's side of iiod's protocol, byte by byte: no libiio needed."""

from __future__ import annotations

import errno
import socket
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.emulators.pluto_streams import Block, Ring
from sim_backend.emulators.pluto_tree import pluto_tree
from sim_backend.local import world_in_thread
from testbed.core.config import PlacedNode, Scene
from testbed.core.errors import InputError
from testbed.core.world import DriverContext

ADC, DAC, PHY = "iio:device3", "iio:device2", "iio:device0"
SCENE = Scene(alice=PlacedNode(position_m=[2.0, 8.0, 1.5]), bob=PlacedNode(position_m=[7.0, 8.0, 1.5]))


class Client:
    def __init__(self, device: EmulatedPluto) -> None:
        _, host, port = device.uri.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.file = self.socket.makefile("rb")

    def say(self, line: str, payload: bytes = b"") -> None:
        self.socket.sendall(line.encode() + b"\r\n" + payload)

    def line(self) -> bytes:
        return self.file.readline()

    def ask(self, line: str, payload: bytes = b"") -> int:
        self.say(line, payload)
        return int(self.line())

    def read(self, where: str) -> bytes:
        n = self.ask(f"READ {where}")
        assert n >= 0, errno.errorcode[-n]
        return self.file.read(n + 1)

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def endpoint() -> Iterator[str]:
    with world_in_thread(SCENE, seed=11) as endpoint:
        yield endpoint


def make(endpoint: str, name: str = "alice", **options: Any) -> EmulatedPluto:
    return EmulatedPluto(
        name, DriverContext(seed=5, world=endpoint, identity=None, state_dir=Path()), cfo_ppm=0.0, **options
    )


@pytest.fixture
def device(endpoint: str) -> Iterator[EmulatedPluto]:
    device = make(endpoint)
    yield device
    device.close()


@pytest.fixture
def client(device: EmulatedPluto) -> Iterator[Client]:
    client = Client(device)
    yield client
    client.close()


def test_version_is_padded_and_unknown_commands_are_refused(client: Client) -> None:
    client.say("VERSION")
    assert client.line() == b"0.24.emulate\n"
    for command in ("ZPRINT", "BINARY", "NONSENSE 1 2"):
        assert client.ask(command) == -errno.EINVAL
    assert client.ask("READ iio:device9 x") == -errno.ENODEV
    assert client.ask("GETTRIG iio:device3") == -errno.ENOENT


def test_xml_is_whole_and_every_value_in_it_can_be_read(client: Client, device: EmulatedPluto) -> None:
    n = client.ask("PRINT")
    text = client.file.read(n + 1).decode()
    assert "<!DOCTYPE context [" in text
    assert text.endswith("</context>\n")
    root = ET.fromstring(text)
    seen = 0
    for d in root.iter("device"):
        for c in d.iter("channel"):
            for a in c.iter("attribute"):
                where = f"{d.get('id')} {str(c.get('type')).upper()} {c.get('id')} {a.get('name')}"
                if a.get("value") == "ERROR":
                    key = (str(d.get("id")), str(a.get("filename")))
                    assert client.ask(f"READ {where}") == -device.tree.refusals[key]
                else:
                    assert client.read(where) == str(a.get("value")).encode() + b"\0\n"
                seen += 1
        for tag, place in (("attribute", ""), ("debug-attribute", "DEBUG "), ("buffer-attribute", "BUFFER ")):
            for a in d.findall(tag):
                if a.get("value") != "ERROR":
                    assert client.read(f"{d.get('id')} {place}{a.get('name')}").endswith(b"\0\n")
                seen += 1
    assert seen > 150


def test_names_and_files_are_those_of_a_real_pluto(device: EmulatedPluto) -> None:
    pytest_libiio = pytest.importorskip("pytest_libiio", reason="pytest-libiio brings a real Pluto's XML")
    path = Path(pytest_libiio.__file__).parent / "resources" / "devices" / "pluto.xml"
    real, ours = ET.parse(path).getroot(), ET.fromstring(device.tree.xml())

    def attributes(root: ET.Element) -> set[tuple[str | None, ...]]:
        out: set[tuple[str | None, ...]] = set()
        for d in root.iter("device"):
            out |= {(d.get("name"), a.tag, a.get("name")) for a in d if a.tag != "channel"}
            for c in d.iter("channel"):
                place = (d.get("name"), c.get("id"), c.get("type"), c.get("name"))
                out |= {(*place, a.get("name"), a.get("filename")) for a in c.iter("attribute")}
        return out

    assert attributes(ours) == attributes(real)
    scans = [
        [(c.get("id"), s.get("index"), s.get("format")) for c in root.iter("channel") for s in c.iter("scan-element")]
        for root in (real, ours)
    ]
    assert scans[0] == scans[1]


def test_a_refused_write_takes_its_payload_off_the_wire(client: Client) -> None:
    assert client.ask(f"WRITE {PHY} OUTPUT altvoltage0 frequency 12", b"99000000000\0") == -errno.EINVAL
    assert client.ask(f"WRITE {PHY} OUTPUT altvoltage0 nonsense 8", b"VERSION\n") == -errno.ENOENT
    assert client.ask(f"WRITE {PHY} INPUT voltage0 rssi 2", b"1\0") == -errno.EACCES
    assert client.ask(f"WRITE {PHY} OUTPUT altvoltage0 frequency 11", b"2500000000\0") == 11
    assert client.read(f"{PHY} OUTPUT altvoltage0 frequency") == b"2500000000\0\n"


def test_one_file_is_one_value(client: Client) -> None:
    """Channels share files, and one clock drives both directions."""
    assert client.ask(f"WRITE {PHY} INPUT voltage0 sampling_frequency 8", b"4000000\0") == 8
    for where in (f"{PHY} INPUT voltage2", f"{PHY} OUTPUT voltage0", f"{ADC} INPUT voltage0", f"{DAC} OUTPUT voltage1"):
        assert client.read(f"{where} sampling_frequency") == b"4000000\0\n"
    # the same file name on two devices is two values
    assert client.read(f"{DAC} OUTPUT voltage0 sampling_frequency_available") == b"4000000 500000 \0\n"
    assert b"2083333" in client.read(f"{PHY} OUTPUT voltage0 sampling_frequency_available")


def test_reading_sends_the_mask_once_and_one_channel_alone(client: Client, device: EmulatedPluto) -> None:
    assert client.ask(f"OPEN {ADC} 64 00000003") == 0
    assert client.ask(f"READBUF {ADC} 512") == 256
    assert client.line() == b"00000003\n"
    assert len(client.file.read(256)) == 256
    assert int(client.line()) == 256
    assert len(client.file.read(256)) == 256
    assert client.ask(f"CLOSE {ADC}") == 0
    assert client.ask(f"CLOSE {ADC}") == -errno.ENXIO
    assert client.ask(f"OPEN {ADC} 64 00000002") == 0
    assert client.ask(f"READBUF {ADC} 128") == 128
    assert client.line() == b"00000002\n"
    assert len(client.file.read(128)) == 128
    for mask in ("00000000", "00000004", "3"):
        assert client.ask(f"OPEN {DAC} 64 {mask}") == -errno.EINVAL


def test_a_client_that_is_gone_has_closed(device: EmulatedPluto, client: Client) -> None:
    """CLOSE and the next OPEN travel on two connections: the second waits up to 50 ms for the first."""
    other = Client(device)
    assert other.ask(f"OPEN {DAC} 64 00000003 CYCLIC") == 0
    assert client.ask(f"OPEN {DAC} 64 00000003 CYCLIC") == -errno.EBUSY
    client.say(f"OPEN {DAC} 64 00000003 CYCLIC")
    other.close()
    assert int(client.line()) == 0


def test_writing_answers_twice(client: Client) -> None:
    assert client.ask(f"WRITEBUF {DAC} 256") == -errno.EBADF
    assert client.ask(f"OPEN {DAC} 64 00000003 CYCLIC") == 0
    assert client.ask(f"WRITEBUF {DAC} 256") == 0
    client.socket.sendall(bytes(256))
    assert int(client.line()) == 256


def block(client: Client, n: int) -> np.ndarray:
    assert client.ask(f"READBUF {ADC} {4 * n}") == 4 * n
    client.line()
    return np.frombuffer(client.file.read(4 * n), "<i2").astype(float).reshape(-1, 2) / 2048


def test_four_blocks_are_old_by_default(endpoint: str) -> None:
    """The ring is filled when the buffer is opened; samples that another sends after that are received four blocks
    late.
    """
    alice, bob = make(endpoint), make(endpoint, "bob")
    tx, rx = Client(alice), Client(bob)
    n = 256
    for c in (tx, rx):
        assert c.ask(f"WRITE {PHY} OUTPUT altvoltage1 frequency 11", b"2400000000\0") == 11
    assert tx.ask(f"WRITE {PHY} OUTPUT voltage0 hardwaregain 2", b"0\0") == 2
    assert rx.ask(f"WRITE {PHY} INPUT voltage0 gain_control_mode 7", b"manual\0") == 7
    assert rx.ask(f"WRITE {PHY} INPUT voltage0 hardwaregain 3", b"20\0") == 3
    assert rx.ask(f"OPEN {ADC} {n} 00000003") == 0
    assert tx.ask(f"OPEN {DAC} {n} 00000003 CYCLIC") == 0
    assert tx.ask(f"WRITEBUF {DAC} {4 * n}") == 0
    tx.socket.sendall(np.full(2 * n, 20000, "<i2").tobytes())
    assert int(tx.line()) == 4 * n
    levels = [np.abs(block(rx, n)).mean() for _ in range(8)]
    assert max(levels[:4]) < 0.3 * min(levels[4:])
    for x in (tx, rx, alice, bob):
        x.close()


def test_overflow_is_silent_and_saturation_clips(endpoint: str) -> None:
    device = make(endpoint, faults={"saturates_at": 0.001})
    client = Client(device)
    assert client.ask(f"OPEN {ADC} 512 00000003") == 0  # at the automatic gain of 71 dB noise fills the converter
    assert np.abs(block(client, 512)).max() <= 0.0015
    device.faults.saturates_at, device.faults.overflow_probability = 1.0, 1.0
    assert client.ask("SET iio:device3 BUFFERS_COUNT 0") == -errno.EINVAL
    assert block(client, 512).shape == (512, 2)
    client.close()
    device.close()


def test_the_crystal_drifts_with_time(endpoint: str) -> None:
    """10 ppm of 2.4 GHz are 24 kHz, reached after a quarter of the period, and -24 kHz after three quarters."""
    n, rate = 4096, 30.72e6
    device = make(endpoint, drift_ppm=10.0, drift_period_s=2 * n / rate, clock_ppm=0.0, clock_offset_s=0.0)
    client = Client(device)
    assert client.ask(f"SET {ADC} BUFFERS_COUNT 1") == 0
    offsets = []
    for size in (n // 2, n, n):  # at 0, a quarter and three quarters of the period
        assert client.ask(f"OPEN {ADC} {size} 00000003") == 0
        offsets.append(device._chains["rx"]._front_end().oscillator.offset_hz)
        assert client.ask(f"CLOSE {ADC}") == 0
    assert offsets == pytest.approx([0.0, 24e3, -24e3], abs=10)
    client.close()
    device.close()


def test_options_are_checked(endpoint: str) -> None:
    with pytest.raises(InputError, match=r"world.emulators.alice.*colour.*accepted: .*drift_ppm.*faults"):
        make(endpoint, colour="red")
    with pytest.raises(InputError, match=r"world.emulators.alice.faults.*gremlins.*accepted: .*early_requeue, "):
        make(endpoint, faults={"gremlins": 1})


# ---------------------------------------------------------------- one clock, any bands


def tune(client: Client, rx_hz: float = 2.4e9, tx_hz: float = 2.4e9, rate_hz: float = 20e6, gain_db: int = 20) -> None:
    for where, value in [
        (f"{PHY} INPUT voltage0 sampling_frequency", str(round(rate_hz))),
        (f"{PHY} OUTPUT altvoltage0 frequency", str(round(rx_hz))),
        (f"{PHY} OUTPUT altvoltage1 frequency", str(round(tx_hz))),
        (f"{PHY} INPUT voltage0 gain_control_mode", "manual"),
        (f"{PHY} INPUT voltage0 hardwaregain", str(gain_db)),
        (f"{PHY} OUTPUT voltage0 hardwaregain", "0"),
    ]:
        assert put(client, where, value) == len(value) + 1, where


def put(client: Client, where: str, value: str) -> int:
    return client.ask(f"WRITE {where} {len(value) + 1}", value.encode() + b"\0")


def play(client: Client, wave: np.ndarray, cyclic: bool = True) -> None:
    levels = np.rint(np.stack([wave.real, wave.imag], axis=1) * 32767).astype("<i2")
    assert client.ask(f"OPEN {DAC} {len(levels)} 00000003{' CYCLIC' if cyclic else ''}") == 0
    push(client, levels)


def push(client: Client, levels: np.ndarray) -> None:
    assert client.ask(f"WRITEBUF {DAC} {levels.nbytes}") == 0
    client.socket.sendall(levels.tobytes())
    assert int(client.line()) == levels.nbytes


def listen(client: Client, n: int) -> np.ndarray:
    assert client.ask(f"SET {ADC} BUFFERS_COUNT 1") == 0
    assert client.ask(f"OPEN {ADC} {n} 00000003") == 0
    parts = block(client, n)
    assert client.ask(f"CLOSE {ADC}") == 0
    return np.asarray(parts[:, 0] + 1j * parts[:, 1])


def strongest_hz(heard: np.ndarray, rate_hz: float) -> float:
    spectrum = np.abs(np.fft.fft((heard - heard.mean()) * np.hanning(heard.size)))
    return float(np.fft.fftfreq(heard.size, 1 / rate_hz)[np.argmax(spectrum)])


def tone(turns: int, n: int = 512) -> np.ndarray:
    return np.asarray(0.8 * np.exp(2j * np.pi * turns * np.arange(n) / n))


@pytest.fixture
def pair(endpoint: str) -> Iterator[tuple[Client, Client]]:
    devices = make(endpoint), make(endpoint, "bob")
    clients = Client(devices[0]), Client(devices[1])
    yield clients
    for x in (*clients, *devices):
        x.close()


def test_the_first_capture_after_a_new_rate_is_as_good_as_any_with_the_transmitter_on(
    pair: tuple[Client, Client],
) -> None:
    """One clock drives both directions: what was sent at the old rate is over when the new one begins."""
    tx, _ = pair
    tune(tx, rate_hz=20e6)
    play(tx, tone(50))
    for rate_hz in (10e6, 4e6, 2.5e6, 30.72e6, 20e6):
        assert put(tx, f"{PHY} OUTPUT voltage0 sampling_frequency", str(round(rate_hz))) > 0
        heard = listen(tx, 4096)  # its own transmitter
        assert strongest_hz(heard[1000:], rate_hz) == pytest.approx(50 / 512 * rate_hz, abs=rate_hz / 2000)
        assert strongest_hz(heard[:1000], rate_hz) == pytest.approx(50 / 512 * rate_hz, abs=rate_hz / 500)


@pytest.mark.parametrize(
    ("away_hz", "sent_rate_hz", "heard_rate_hz"),
    [(0.0, 4e6, 10e6), (0.0, 10e6, 4e6), (3e6, 20e6, 20e6), (1.2e6, 4e6, 30.72e6), (-0.5e6, 3.84e6, 2.5e6)],
)
def test_any_mixture_of_carriers_and_rates_is_heard(
    pair: tuple[Client, Client], away_hz: float, sent_rate_hz: float, heard_rate_hz: float
) -> None:
    tx, rx = pair
    tune(tx, tx_hz=2.4e9 + away_hz, rate_hz=sent_rate_hz)
    tune(rx, rate_hz=heard_rate_hz)
    play(tx, tone(51))
    expected_hz = away_hz + 51 / 512 * sent_rate_hz
    assert strongest_hz(listen(rx, 8192), heard_rate_hz) == pytest.approx(expected_hz, abs=heard_rate_hz / 2000)


# ---------------------------------------------------------------- long buffers, several readers


def test_open_does_not_wait_for_a_long_buffer_and_its_samples_come_as_they_grow(
    pair: tuple[Client, Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[int] = []
    add = Block.add

    def noted(self: Block, samples: np.ndarray) -> None:
        add(self, samples)
        captured.append(len(samples))

    monkeypatch.setattr(Block, "add", noted)
    tx, rx = pair
    tune(tx, rate_hz=4e6)
    tune(rx, rate_hz=4e6)
    play(tx, tone(50))
    n = 1 << 20
    assert rx.ask(f"OPEN {ADC} {n} 00000003") == 0
    assert sum(captured) < 4 * n  # four blocks were asked for
    heard = block(rx, n)
    samples = heard[:, 0] + 1j * heard[:, 1]
    for part in np.array_split(samples, 64):  # no seam where one piece ends and the next begins
        assert strongest_hz(part, 4e6) == pytest.approx(50 / 512 * 4e6, abs=1000)
    assert rx.ask(f"CLOSE {ADC}") == 0
    assert max(captured) < n


def test_a_second_reader_shares_the_samples(device: EmulatedPluto) -> None:
    """As iiod does; only what is repeated belongs to one client alone."""
    first, second = Client(device), Client(device)
    assert first.ask(f"OPEN {ADC} 256 00000003") == 0
    assert second.ask(f"OPEN {ADC} 512 00000001") == 0
    assert second.ask(f"READBUF {ADC} 1024") == 1024
    assert second.line() == b"00000001\n"
    assert len(second.file.read(1024)) == 1024
    assert block(first, 256).shape == (256, 2)  # the start of a block of 512
    assert second.ask(f"CLOSE {ADC}") == 0
    assert block(first, 256).shape == (256, 2)
    assert second.ask(f"OPEN {DAC} 64 00000003") == 0
    assert first.ask(f"OPEN {DAC} 64 00000003") == 0
    third = Client(device)
    assert third.ask(f"OPEN {DAC} 64 00000003 CYCLIC") == -errno.EBUSY
    for client in (first, second, third):
        client.close()


def test_readers_that_wait_together_are_given_the_same_block() -> None:
    class Radio:
        rate_hz, early_requeue = 1e6, False
        blocks: ClassVar[list[Block]] = []

        def capture(self, block: Block) -> None:
            self.blocks.append(block)

        def took(self, duration_s: float, ring_s: float) -> None: ...
        def asked(self) -> None: ...

    radio = Radio()
    ring = Ring(radio)
    n = 1 << 18
    for reader in ("a", "b"):
        ring.join(reader, n, 1)
    assert [b.wanted for b in radio.blocks] == [False, True]  # begun anew for the second
    taken: list[Block] = []
    threads = [threading.Thread(target=lambda name=name: taken.append(ring.take(name))) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    radio.blocks[1].add(np.zeros((n // 2, 2), "<i2"))
    for thread in threads:
        thread.join(60)
    assert [b is radio.blocks[1] for b in taken] == [True, True]
    assert len(radio.blocks) == 2


def test_a_source_that_waits_does_not_keep_a_sink_from_sending(device: EmulatedPluto) -> None:
    """What GNU Radio does in one process: a context for its source, then one for its sink."""
    source, sink = Client(device), Client(device)
    tune(source, rate_hz=4e6)
    assert source.ask(f"OPEN {ADC} 32768 00000003") == 0
    play(sink, tone(50, 4096), cyclic=False)
    for _ in range(6):
        assert block(source, 32768).shape == (32768, 2)
        push(sink, np.zeros((4096, 2), "<i2"))
    # a block that takes seconds is being captured: the sink is answered meanwhile
    assert source.ask(f"CLOSE {ADC}") == 0
    assert source.ask(f"OPEN {ADC} {1 << 22} 00000003") == 0
    waited_for = list(device._ring._blocks)
    push(sink, np.zeros((4096, 2), "<i2"))
    assert not waited_for[-1].whole
    for client in (source, sink):
        client.close()


# ---------------------------------------------------------------- loopback, registers, flags


def test_the_chips_own_loopback_gives_back_what_is_sent_bit_by_bit(client: Client, device: EmulatedPluto) -> None:
    assert put(client, f"{PHY} DEBUG loopback", "1") > 0
    levels = np.stack([np.arange(2048) << 4, -(np.arange(2048) << 4) - 1], axis=1).astype("<i2")
    assert client.ask(f"OPEN {DAC} 2048 00000003 CYCLIC") == 0
    push(client, levels)
    assert client.ask(f"OPEN {ADC} 3000 00000003") == 0
    heard = np.concatenate([block(client, 3000) * 2048 for _ in range(3)])
    at = np.arange(9000) % 2048
    np.testing.assert_array_equal(heard, np.stack([at, -at - 1], axis=1))
    assert put(client, f"{PHY} DEBUG loopback", "3") == -errno.EINVAL
    assert client.read(f"{PHY} DEBUG loopback") == b"1\0\n"


def test_the_fpgas_loopback_sends_what_is_received(endpoint: str) -> None:
    names = ("alice", "bob")
    devices = [make(endpoint, name) for name in names]
    sender, mirror = (Client(d) for d in devices)
    tune(sender, rate_hz=4e6, rx_hz=2.5e9)
    tune(mirror, rate_hz=4e6, tx_hz=2.5e9, gain_db=50)
    assert put(mirror, f"{PHY} DEBUG loopback", "2") > 0
    play(sender, tone(50))
    listen(mirror, 8192)
    assert strongest_hz(listen(sender, 4096), 4e6) == pytest.approx(50 / 512 * 4e6, abs=4000)
    for x in (sender, mirror, *devices):
        x.close()


def test_the_chip_says_which_family_it_is_of(client: Client) -> None:
    assert put(client, f"{PHY} DEBUG direct_reg_access", "0x37") > 0
    assert client.read(f"{PHY} DEBUG direct_reg_access") == b"0xA\0\n"
    assert put(client, f"{PHY} DEBUG direct_reg_access", "0x37 0x55") > 0  # cannot be changed
    assert client.read(f"{PHY} DEBUG direct_reg_access") == b"0xA\0\n"
    assert put(client, f"{PHY} DEBUG direct_reg_access", "0x100 0x155") > 0
    assert client.read(f"{PHY} DEBUG direct_reg_access") == b"0x55\0\n"
    for wrong in ("0x400", "x", "1 2 3", "-1", "0x37 x"):
        assert put(client, f"{PHY} DEBUG direct_reg_access", wrong) == -errno.EINVAL


def status(client: Client, converter: str) -> int:
    assert put(client, f"{converter} DEBUG direct_reg_access", "0x80000088") > 0
    return int(client.read(f"{converter} DEBUG direct_reg_access").rstrip(b"\0\n"), 16)


def test_a_client_that_idles_overflows_the_receiver_and_starves_the_transmitter(
    client: Client, device: EmulatedPluto, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    for patience in (device._rx_patience, device._tx_patience):
        monkeypatch.setattr(patience, "_clock", lambda: now_s[0])
    tune(client, rate_hz=1e6 * 3)
    n = 3000  # a millisecond
    assert client.ask(f"OPEN {ADC} {n} 00000003") == 0
    assert client.ask(f"OPEN {DAC} {n} 00000003") == 0
    zeros = np.zeros((n, 2), "<i2")
    for _ in range(5):
        block(client, n)
        push(client, zeros)
        now_s[0] += 0.5e-3
        assert (status(client, ADC), status(client, DAC)) == (0, 0)
    now_s[0] += 20e-3
    assert (status(client, ADC) & 4, status(client, DAC) & 1) == (4, 1)
    block(client, n)
    push(client, zeros)
    assert (status(client, ADC) & 4, status(client, DAC) & 1) == (4, 1)  # until they are cleared
    for converter in (ADC, DAC):
        assert put(client, f"{converter} DEBUG direct_reg_access", "0x80000088 0x7") > 0
        assert status(client, converter) == 0
    now_s[0] += 20e-3
    push(client, zeros)  # late: that is noticed, too
    assert status(client, DAC) & 1


def test_the_crystals_correction_moves_both_oscillators(endpoint: str) -> None:
    """With its true clock frequency set, 40 MHz and 10 ppm, a device has exactly the ordered carrier."""
    sender, listener = make(endpoint), make(endpoint, "bob")
    sender._cfo_ppm = 10.0
    clients = Client(sender), Client(listener)
    for client in clients:
        tune(client, rate_hz=4e6)
    play(clients[0], tone(50))
    for xo_hz, off_hz in ((40_000_000, 24e3), (40_000_400, 0.0), (40_000_800, -24e3)):
        assert put(clients[0], f"{PHY} xo_correction", str(xo_hz)) > 0
        heard = listen(clients[1], 512)  # one period: the phase begins anew with each
        assert strongest_hz(np.pad(heard, (0, 7680)), 4e6) == pytest.approx(50 / 512 * 4e6 + off_hz, abs=4e3)
    for x in (*clients, sender, listener):
        x.close()


# ---------------------------------------------------------------- what must not get in


@pytest.mark.parametrize(
    ("where", "payload", "answer"),
    [
        (f"{PHY} OUTPUT altvoltage0 fastlock_save", b"\x01\x02", errno.EINVAL),
        (f"{PHY} OUTPUT altvoltage0 fastlock_load", b"A" * 300, errno.E2BIG),
        (f"{PHY} OUTPUT altvoltage0 fastlock_save", b"ERROR", errno.EINVAL),
        (f"{PHY} INPUT voltage0 rf_port_select", b"\x1b[31mA", errno.EINVAL),
        (f"{PHY} rssi_gain_step_error", b"lna_error: \x1b[2J", errno.EINVAL),  # these two take any other text
        (f"{ADC} DEBUG pseudorandom_err_check", b"CH0 : \x07", errno.EINVAL),
        (f"{PHY} INPUT voltage0 rf_port_select", b"Z_BALANCED", errno.EINVAL),
        (f"{PHY} calib_mode", b"caf\xc3\xa9", errno.EINVAL),
        (f"{PHY} xo_correction", b"nan", errno.EINVAL),
        (f"{PHY} xo_correction", b"much", errno.EINVAL),
        (f"{PHY} xo_correction", b"1", errno.EINVAL),
        (f"{PHY} OUTPUT voltage0 hardwaregain", b"inf", errno.EINVAL),
        (f"{PHY} OUTPUT altvoltage0 frequency", b"1e400", errno.EINVAL),
        (f"{PHY} INPUT voltage0 rf_bandwidth", b"30000000", errno.EINVAL),
        (f"{PHY} INPUT voltage0 rf_bandwidth", b"-1", errno.EINVAL),
        (f"{PHY} gain_table_config", b"<x>\x00", errno.EINVAL),
        (f"{PHY} gain_table_config", b"<gaintable " + b"9" * 40000 + b"</gaintable>", errno.E2BIG),
        (f"{PHY} filter_fir_config", b"no filter\n\x07", errno.EINVAL),
        (f"{PHY} DEBUG bist_tone", b"ERROR", errno.EINVAL),
        (f"{ADC} BUFFER watermark", b"ERROR", errno.EINVAL),
        (f"{ADC} BUFFER watermark", b"", errno.EINVAL),
        (f"{PHY} ensm_mode", b"warp", errno.EINVAL),
        (f"{DAC} OUTPUT altvoltage0 scale", b"]]>", errno.EINVAL),
        (f"{DAC} OUTPUT altvoltage0 frequency", b"1e308", errno.EINVAL),  # no later client could set a gain
        (f"{DAC} OUTPUT altvoltage0 frequency", b"-1", errno.EINVAL),
        (f"{DAC} OUTPUT altvoltage0 phase", b"1e300", errno.EINVAL),
        (f"{DAC} OUTPUT altvoltage2 scale", b"1e308", errno.EINVAL),
        (f"{DAC} OUTPUT altvoltage1 raw", b"1e300", errno.EINVAL),
        (f"{DAC} OUTPUT voltage0 calibscale", b"-1e308", errno.EINVAL),
        (f"{PHY} OUTPUT altvoltage1 powerdown", b"-1e300", errno.EINVAL),
        (f"{PHY} INPUT voltage0 filter_fir_en", b"1e300", errno.EINVAL),
        (f"{ADC} DEBUG direct_reg_access", b"0x1234567 5", errno.EINVAL),  # each address was remembered
    ],
)
def test_nothing_that_is_written_locks_a_later_client_out(
    client: Client, device: EmulatedPluto, where: str, payload: bytes, answer: int
) -> None:
    before = client.read(where)
    assert client.ask(f"WRITE {where} {len(payload)}", payload) == -answer
    assert client.read(where) == before
    later = Client(device)
    n = later.ask("PRINT")
    ET.fromstring(later.file.read(n + 1).decode())
    later.close()


def test_many_blocks_of_a_long_buffer_are_refused(client: Client, device: EmulatedPluto) -> None:
    """64 blocks of 4 Mi samples would take 1 GiB, also where two clients ask for one of the two each."""
    assert client.ask(f"SET {ADC} BUFFERS_COUNT 64") == 0
    assert client.ask(f"OPEN {ADC} {1 << 22} 00000003") == -errno.ENOMEM
    assert client.ask(f"SET {ADC} BUFFERS_COUNT 4") == 0
    assert client.ask(f"OPEN {ADC} {1 << 19} 00000003") == 0
    other = Client(device)
    assert other.ask(f"SET {ADC} BUFFERS_COUNT 64") == 0
    assert other.ask(f"OPEN {ADC} 1 00000003") == -errno.ENOMEM
    other.close()


def test_whatever_a_value_is_the_xml_stays_one() -> None:
    tree = pluto_tree("12\x00\x1f<&\"'\ud800", "ad9363a", "v\x0b0.38" + "x" * 5000)
    root = ET.fromstring(tree.xml().encode("utf-8"))
    assert all(len(str(a.get("value"))) < 1024 for a in root.iter() if a.get("value") is not None)


@pytest.mark.parametrize("command", [f"WRITE {PHY} calib_mode", f"WRITEBUF {DAC}"])
def test_sixty_four_mebibytes_are_refused_before_they_are_sent(client: Client, command: str) -> None:
    assert client.ask(f"OPEN {DAC} 4096 00000003") == 0
    assert client.ask(f"{command} {1 << 26}") < 0


def test_it_is_as_sold_unless_it_is_unlocked(endpoint: str) -> None:
    for options, carriers, bandwidth in (
        ({}, b"[325000000 1 3800000000]", b"[200000 1 20000000]"),
        ({"model": "ad9364"}, b"[70000000 1 6000000000]", b"[200000 1 56000000]"),
    ):
        device = make(endpoint, **options)
        client = Client(device)
        assert client.read(f"{PHY} OUTPUT altvoltage0 frequency_available") == carriers + b"\0\n"
        assert client.read(f"{PHY} INPUT voltage0 rf_bandwidth_available") == bandwidth + b"\0\n"
        expected = -errno.EINVAL if not options else 11
        assert put(client, f"{PHY} OUTPUT altvoltage0 frequency", "5800000000") == expected
        client.close()
        device.close()
