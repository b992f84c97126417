"""The emulated Pluto's side of iiod's protocol, byte by byte: no libiio needed."""

from __future__ import annotations

import errno
import socket
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim_backend.emulators.pluto import EmulatedPluto
from sim_backend.local import world_in_thread
from testbed.core.config import PlacedNode, Scene
from testbed.core.errors import InputError
from testbed.core.world import DriverContext

ADC, DAC, PHY = "iio:device3", "iio:device2", "iio:device0"
SCENE = Scene(alice=PlacedNode(position_m=[2.0, 8.0, 1.5]), bob=PlacedNode(position_m=[7.0, 8.0, 1.5]))


class Client:
    def __init__(self, device: EmulatedPluto) -> None:
        _, host, port = device.uri.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=5)
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
    """The ring is filled when the buffer is opened; what another sends after that is heard four blocks late."""
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
    assert block(client, 512).shape == (512, 2)  # nothing tells
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
