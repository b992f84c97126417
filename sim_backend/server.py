"""The World's process: one ROUTER socket in front of one `Air`; it keeps receptions until they can be computed."""

from __future__ import annotations

import contextlib
import logging
import math
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import zmq
from numpy.typing import NDArray

from sim_backend import messages as m
from sim_backend import uma
from sim_backend.arrays import Array
from sim_backend.beside import Hall, offered
from sim_backend.channel import Channel, responses
from sim_backend.link import link_to
from sim_backend.ticks import to_seconds, to_ticks
from sim_backend.world import Air, Reception, Refused
from testbed.core import registry
from testbed.core.config import RadioPlan, Scene, to_dict
from testbed.core.errors import InputError, ProtocolError
from testbed.core.gate import Strikes, printable
from testbed.core.identity import Identity, secure, start_authenticator
from testbed.core.options import convert
from testbed.core.sockets import end_context
from testbed.core.types import F64, SurfacePattern
from testbed.core.world import DriverContext, Emulator, Equipment, Turns, World

_REPLACED = "another process attached under its name"
_LOOK_UP_S = 0.05
"""How often the loop checks whether it must stop."""
_QUEUED = 1000
"""Largest number of requests that wait on a connection."""
_A_PASS = 1000
"""Messages that are read before receptions are computed: a device that never stops sending holds nobody up."""
_HANDSHAKE_MS = 5000
MAX_SESSIONS = 256
"""Largest number of devices on the air."""

_OWNERS: Mapping[type, str] = {m.Reset: "coordinator", m.Pass: "coordinator"}
"""Request → the only node that may make it: both concern every device."""

log = logging.getLogger("testbed.world")


class SimWorld(World):
    """The simulated air as a daemon (`testbed sim`)."""

    @staticmethod
    def serve(
        endpoint: str,
        identity: Identity | None,
        pace: str,
        peer_timeout_s: float,
        ready: Callable[[str], None],
    ) -> None:
        stop = threading.Event()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: stop.set())
        serve(endpoint, identity, pace, peer_timeout_s, ready, stop)

    @staticmethod
    def hold(turns: Turns, peer_timeout_s: float) -> AbstractContextManager[str]:
        from sim_backend.local import held

        return held(turns, peer_timeout_s)

    @staticmethod
    def check(scene: Scene) -> None:
        if scene.uma is not None:
            uma.check_library()

    @staticmethod
    def reset(
        endpoint: str, identity: Identity | None, scene: Scene, radio: RadioPlan, seed: int, timeout_s: float
    ) -> None:
        link = link_to("world", endpoint, identity)
        try:
            request = m.Reset(id=link.next_id(), scene=to_dict(scene), carrier_hz=radio.carrier_hz, seed=seed)
            link.ask(request, "serving", timeout_s=timeout_s)
        finally:
            link.close("serving")

    @staticmethod
    @contextlib.contextmanager
    def pacer(endpoint: str, identity: Identity | None) -> Iterator[Callable[[float], None]]:
        link = link_to("world", endpoint, identity)

        def let_pass(until_s: float) -> None:
            link.ask(m.Pass(id=link.next_id(), until=to_ticks(until_s)), "serving")

        try:
            yield let_pass
        finally:
            link.close("serving")

    @staticmethod
    def responses(
        scene: Scene, carrier_hz: float, seed: int, time_s: F64, subcarrier_hz: F64, pattern: SurfacePattern | None
    ) -> dict[str, NDArray[np.complex128]]:
        return responses(Channel(scene, carrier_hz, seed), carrier_hz, time_s, subcarrier_hz, pattern)

    @staticmethod
    def emulate(name: str, driver: str, context: DriverContext, options: Mapping[str, Any]) -> Any:
        try:
            twin: type[Emulator] = registry.find("emulators", driver)
        except InputError as exc:
            raise InputError(f"table [world.emulators.{name}]: {exc}") from exc
        if twin.in_process:  # made by `equip`; here its options are checked
            if twin.options_type is not None:
                convert(dict(options), twin.options_type, "", [f"world.emulators.{name}"])
            return None
        return twin(name, context, **options)  # type: ignore[call-arg]

    @staticmethod
    def implied_options(name: str, driver: str, options: Mapping[str, Any]) -> dict[str, Any]:
        if driver != "pluto":
            return {}
        from sim_backend.emulators._options import emulator_options
        from sim_backend.emulators.pluto import PlutoOptions

        return {"variant": emulator_options(name, options, PlutoOptions).model}

    @staticmethod
    def equip(name: str, driver: str, context: DriverContext, options: Mapping[str, Any]) -> Equipment | None:
        if driver not in registry.names("emulators"):
            return None
        twin: type[Emulator] = registry.find("emulators", driver)
        return twin.equip(name, context, options) if twin.in_process else None


def serve(
    endpoint: str,
    identity: Identity | None,
    pace: str,
    peer_timeout_s: float,
    ready: Callable[[str], None],
    stop: threading.Event,
) -> None:
    """Bind, call `ready` with the actual endpoint, serve until `stop` is set (noticed within 50 ms)."""
    if pace not in ("virtual", "wall"):
        raise ValueError(f"pace {pace!r}, accepted: virtual, wall")
    context, authenticator = zmq.Context(), None
    try:
        authenticator = start_authenticator(context, identity)
        socket = context.socket(zmq.ROUTER)
        socket.setsockopt(zmq.LINGER, 0)
        # Memory must not grow with what a peer sends, not even before the peer is authenticated.
        socket.setsockopt(zmq.MAXMSGSIZE, m.MAX_FRAME_BYTES)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        socket.setsockopt(zmq.RCVHWM, _QUEUED)
        socket.setsockopt(zmq.SNDHWM, _QUEUED)
        # a dead peer must not block messages for others, nor return under its old route
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        secure(socket, identity)
        try:
            socket.bind(endpoint)
        except zmq.ZMQError as exc:
            raise InputError(f"the simulated air cannot listen on {endpoint}: {exc}; choose a free port") from exc

        def send(route: bytes, frames: list[Any]) -> None:
            with contextlib.suppress(zmq.Again):  # answers that a peer does not read are lost
                socket.send_multipart([route, *frames], zmq.NOBLOCK)

        names = {} if identity is None else {key: name for name, key in identity.known.items()}
        hall = Hall(send)
        hall.server = server = Server(hall.send, pace, peer_timeout_s)
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(hall.bell, zmq.POLLIN)
        endpoint, due_in_s = socket.getsockopt_string(zmq.LAST_ENDPOINT), _LOOK_UP_S
        with offered(endpoint, hall):
            ready(endpoint)
            while not stop.is_set():
                poller.poll(math.ceil(1e3 * min(_LOOK_UP_S, due_in_s)))
                hall.send_left()
                # everything that has arrived is read before anything is computed, since one pass often completes
                # several receptions
                with hall.turn:
                    for frames in _arrived(socket):
                        sender = None if identity is None else names.get(frames[-1].get("User-Id"), "?")
                        server.handle(frames[0].bytes, [f.bytes for f in frames[1:]], time.monotonic(), sender)
                    server.settle(time.monotonic())
                    due_in_s = server.due_in_s(time.monotonic())
    finally:
        end_context(context, linger_ms=0, authenticator=authenticator)


def _arrived(socket: Any) -> Iterator[list[Any]]:
    """Yield what waits on a socket, without waiting for more; no more than a pass can take, whoever sends."""
    for _ in range(_A_PASS):
        try:
            frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        yield frames


@dataclass(slots=True)
class _Session:
    name: str
    kind: str
    gone: str = ""
    """The reason why it is off the air; '' while it is on the air."""
    silenced: bool = False
    """Whether what it sends is refused until it is tuned again."""


@dataclass(slots=True)
class _Train:
    """Receptions that are answered together."""

    fields: list[Any]
    """Samples by window, None until they are available."""
    failed: list[m.Failure] = field(default_factory=list)
    open: int = 0

    def answer(self, id: int, now: int, seed: int) -> tuple[m.Reply, NDArray[np.complex64]]:
        failed = tuple(sorted(self.failed, key=lambda f: f.window))
        found = [x.ravel() for x in self.fields if x is not None]
        reply = m.Reply(id=id, now=now, seed=seed, failed=failed)
        return reply, np.concatenate(found) if found else np.empty(0, np.complex64)


@dataclass(frozen=True, slots=True)
class _Window:
    """One reception of a request."""

    asked: m.Receive | m.Window
    end: int
    index: int = 0
    """Position in the train."""


@dataclass(slots=True)
class _Waiting:
    """A request for samples, or an answer in wall pace, that cannot be sent yet."""

    route: bytes
    request: m.Receive | m.ReceiveMany
    name: str
    windows: list[_Window]
    """Windows that are not answered yet, in ascending order of time."""
    deadline: float
    train: _Train | None = None

    @property
    def end(self) -> int:
        """Time of its last sample: a train is computed and answered as a whole."""
        return self.windows[-1].end


_Due = tuple[_Waiting, _Window]


class Server:
    """Turns requests into answers. The loop in `serve` passes the time and the function that sends."""

    def __init__(self, send: Callable[[bytes, list[Any]], None], pace: str, peer_timeout_s: float) -> None:
        self._send, self._paced, self._peer_timeout_s = send, pace == "wall", peer_timeout_s
        self._air = Air()
        self._began = time.monotonic()
        self._sessions: dict[str, _Session] = {}
        self._waiting: list[_Waiting] = []
        self._lagging: dict[str, tuple[float, int]] = {}
        """Radios for which others wait → (since when, the radio's horizon at that time)."""
        self._next_look = 0.0
        """Time of the next check for silent radios."""
        self._strikes = Strikes(most=20)
        self.lines: dict[bytes, Callable[[m.Reply, Any], None]] = {}
        """Devices of this process, by their routes: what takes an answer to a `call`."""
        self.refused = 0
        """Messages that were malformed, or that this world could not serve."""

    # ---------------------------------------------------------------- the loop's three calls

    def handle(self, route: bytes, frames: list[bytes], now: float, sender: str | None = None) -> None:
        """Serve one request; receptions are kept for `settle`.

        `sender` is the authenticated name behind it, None where links are not authenticated: nobody attaches under
        another's name, and only the coordinator (or this process, for its emulated devices) makes a new world or lets
        its time pass.
        """
        self._pass_time(now)
        if self._strikes.muted(route):
            return
        try:
            if not 1 <= len(frames) <= 2:
                raise ProtocolError(f"{len(frames)} frames, accepted: a request, and samples or levels")
            request = m.decode_request(frames[0])
        except ProtocolError as exc:
            self._strike(route)
            # A client can only match an answer by its id, which is read from the header if it can be decoded.
            self._answer(route, m.Reply(id=_id_of(frames), error="device", detail=f"message not understood: {exc}"))
            return
        self._take(route, request, frames[1] if len(frames) > 1 else b"", now, sender)

    def call(self, route: bytes, request: m.Request, payload: bytes, now: float) -> None:
        """Serve a request of a device of this process, which is the World's own."""
        self._pass_time(now)
        self._take(route, request, payload, now, "world")

    def _take(self, route: bytes, request: m.Request, payload: bytes, now: float, sender: str | None) -> None:
        try:
            self._serve_checked(route, request, payload, now, sender)
        except Exception as exc:
            # an error of the computation must affect the request's sender only
            log.error("a %s could not be served: %s: %s", type(request).__name__, type(exc).__name__, exc)
            log.debug("", exc_info=True)
            self._strike(route)
            detail = f"could not be served: {type(exc).__name__}: {printable(str(exc))}"
            self._give_up(request.session, detail)
            self._answer(route, m.Reply(id=request.id, error="device", detail=detail))

    def _strike(self, route: bytes) -> None:
        self.refused += 1
        if self._strikes.count(route):
            log.warning("a connection is ignored after too many bad messages")

    def _give_up(self, session: str, why: str) -> None:
        if session not in self._sessions or self._sessions[session].gone:
            return
        try:
            self._end(session, why)
        except Exception as exc:  # the same error may occur again while the device leaves
            log.error("%s: %s", self._sessions[session].name, exc)
            self._air.stations.pop(self._sessions[session].name, None)

    def _serve_checked(self, route: bytes, request: m.Request, payload: bytes, now: float, sender: str | None) -> None:
        """Serve a request if its sender may make it."""
        wanted = request.name if isinstance(request, m.Attach) else _OWNERS.get(type(request))
        if wanted is not None and sender not in (None, "world", wanted):
            detail = f"{sender} may not do what is {wanted}'s"
            self._strike(route)
            self._answer(route, m.Reply(id=request.id, error="device", detail=detail))
            return
        try:
            reply = self._serve(route, request, payload, now)
        except Refused as exc:
            reply = m.Reply(id=request.id, error=exc.kind, detail=exc.detail, seed=self._air.seed)  # type: ignore[arg-type]
        if reply is not None:
            held = (
                self._air.pattern(self._name(request)) if isinstance(request, m.Readback) and not reply.error else None
            )
            self._answer(route, reply, held)

    def settle(self, now: float) -> None:
        """Answer every reception that is complete or out of time; drop the silent."""
        self._pass_time(now)
        if now >= self._next_look:
            self._next_look = now + min(_LOOK_UP_S, self._peer_timeout_s / 4)
            self._drop_silent(now)
        still: list[_Waiting] = []
        ready: list[_Due] = []
        for w in sorted(self._waiting, key=lambda w: (w.end, w.name)):
            if not self._missing(w.name, w.end, now):
                self._air.pass_time(w.end)
                ready += [(w, window) for window in w.windows]
            elif now >= w.deadline:
                ready += self._give_up_late(w, now)
            else:
                still.append(w)
        self._waiting = still
        self._complete(ready)

    def _missing(self, name: str, end: int, now: float) -> list[str]:
        """Return what a reception up to `end` waits for: radios by name, or the clock as ''."""
        return self._air.undeclared(name, end) or ([""] if self._wall_s(end) > now else [])

    def _give_up_late(self, w: _Waiting, now: float) -> list[_Due]:
        """Refuse the windows of a request that is out of time, but for those that are complete: return these."""
        ready: list[_Due] = []
        for window in w.windows:
            missing = self._missing(w.name, window.end, now)
            if not missing:
                self._air.pass_time(window.end)
                ready.append((w, window))
                continue
            stations = self._air.stations
            behind = ", ".join(
                f"{n} ({to_seconds(window.end - stations[n].horizon):.6f} s behind)" for n in missing if n
            )
            detail = f"no samples within {w.request.timeout_s:g} s; " + (
                f"waiting for {behind}" if behind else "not yet that late"
            )
            self._fail(w, window, "timeout", detail)
        return ready

    @property
    def has_waiting(self) -> bool:
        """Whether a reception waits for `settle`."""
        return bool(self._waiting)

    def due_in_s(self, now: float) -> float:
        """Return the time after which `settle` must be called if no message arrives."""
        moments = [w.deadline for w in self._waiting]
        moments += [max(since + self._peer_timeout_s, self._next_look) for since, _ in self._lagging.values()]
        if self._paced:
            moments += [self._wall_s(w.end) for w in self._waiting if self._wall_s(w.end) > now]
        return max(0.0, min(moments, default=math.inf) - now)

    # ---------------------------------------------------------------- requests

    def _serve(self, route: bytes, request: m.Request, payload: bytes, now: float) -> m.Reply | None:
        air = self._air
        match request:
            case m.Attach():
                return self._attach(request)
            case m.Reset():
                self._reset(request, now)
                return m.Reply(id=request.id, seed=air.seed)
            case m.Pass():
                if not self._paced:  # on the wall clock it goes by itself
                    air.let_pass(request.until)
                return m.Reply(id=request.id, now=air.frontier, seed=air.seed)
            case m.Declare():
                session = self._sessions.get(request.session)
                if session is not None and session.name in air.stations and not session.gone:
                    air.declare(session.name, request.until)
                return None
        return self._serve_device(route, request, self._name(request), payload, now)

    def _serve_device(self, route: bytes, request: m.Request, name: str, payload: bytes, now: float) -> m.Reply | None:
        """Serve a request of an attached device."""
        air = self._air
        match request:
            case m.Detach():
                self._end(request.session, "it has detached")
                del self._sessions[request.session]
            case m.Tune():
                self._sessions[request.session].silenced = False
                air.tune(
                    name,
                    request.place,
                    request.carrier_hz,
                    request.sample_rate_hz,
                    request.turnaround_s,
                    request.free,
                    None
                    if request.n_antennas == 1
                    else Array(request.n_antennas, request.spacing_wavelengths, request.axis),
                )
            case m.Transmit():
                self._transmit(name, request, [(request.start, request.shift, None)], payload, request.cyclic)
                if not request.answer:
                    return None
            case m.TransmitMany():
                frames = [(x.start, x.shift, x.n_samples) for x in request.frames]
                self._transmit(name, request, frames, payload, cyclic=False)
                return None
            case m.Receive():
                self._same_world(request.seed)
                self._check_size(name, request.n_samples)
                end = air.check_reception(name, request.start, request.n_samples)
                # a client has one request at a time, so an earlier one was given up
                self._waiting = [w for w in self._waiting if w.name != name]
                self._waiting.append(_Waiting(route, request, name, [_Window(request, end)], now + request.timeout_s))
                return None
            case m.ReceiveMany():
                self._same_world(request.seed)
                self._check_size(name, sum(window.n_samples for window in request.windows))
                self._begin_train(route, request, name, now)
                return None
            case m.Silence():
                self._sessions[request.session].silenced |= request.final
                air.silence(name, request.repeated_only)
            case m.Hang():
                air.hang(name, (request.rows, request.columns), request.phase_bits)
            case m.Apply():
                levels = self._levels(name, payload)
                return m.Reply(id=request.id, time=air.latch(name, levels, max(0, request.latency)))
            case m.Schedule():
                patterns = self._patterns(name, payload, len(request.times))
                times = air.schedule(name, patterns, request.times, max(0, request.latency))
                return m.Reply(id=request.id, now=air.now(name), seed=air.seed, times=times)
            case m.Readback():
                air.pattern(name)
            case m.Now() if request.receiving and not self._paced:
                return m.Reply(id=request.id, now=air.earliest(name), seed=air.seed)
        return m.Reply(id=request.id, now=air.now(name), seed=air.seed, runs=self._paced)

    def _transmit(
        self, name: str, request: m.Transmit | m.TransmitMany, frames: Sequence[tuple[int, int, int | None]],
        payload: bytes, cyclic: bool,
    ) -> None:  # fmt: skip
        """Put (start, shift, samples) on the air, one after the other; None: all samples that there are."""
        self._same_world(request.seed)
        if self._sessions[request.session].silenced:
            raise Refused("device", "the radio was silenced for good")
        array = self._air.stations[name].array if name in self._air.stations else None
        n_antennas = 1 if array is None else array.n
        if not payload or len(payload) % (8 * n_antennas) or len(payload) > 8 * m.MAX_SAMPLES:
            raise Refused("device", f"{len(payload)} bytes are not 1 to {m.MAX_SAMPLES} complex64 samples")
        samples, used = np.frombuffer(payload, np.complex64), 0
        sizes = [samples.size if n is None else n * n_antennas for _, _, n in frames]
        if sum(sizes) != samples.size:
            raise Refused("device", f"{samples.size} samples, the frames have {sum(sizes)}")
        for (start, shift, _), size in zip(frames, sizes, strict=True):
            frame, used = samples[used : used + size], used + size
            self._air.transmit(name, start, frame if array is None else frame.reshape(array.n, -1), shift, cyclic)

    def _attach(self, request: m.Attach) -> m.Reply:
        if request.protocol != m.PROTOCOL:
            raise Refused(
                "device", f"speaks protocol {request.protocol}, this world {m.PROTOCOL}: update the older side"
            )
        for token, session in self._sessions.items():
            if session.name == request.name and not session.gone:
                self._end(token, _REPLACED)
        gone = [token for token, session in self._sessions.items() if session.gone]
        for token in gone[:-100]:  # the last ones may still ask for the reason
            del self._sessions[token]
        if len(self._sessions) - min(len(gone), 100) >= MAX_SESSIONS:
            raise Refused("device", f"{MAX_SESSIONS} devices are on the air, accepted: no more")
        token = secrets.token_hex(8)
        self._sessions[token] = _Session(request.name, request.kind)
        return m.Reply(id=request.id, session=token, now=self._air.now(request.name), seed=self._air.seed)

    def _reset(self, request: m.Reset, now: float) -> None:
        try:
            scene = msgspec.convert(request.scene, Scene)
            self._air.reset(scene, request.carrier_hz, request.seed)
        except Exception as exc:
            raise Refused("device", f"scene refused: {printable(str(exc) or type(exc).__name__)}") from exc
        self._began = now
        self._lagging.clear()
        for w in self._waiting:
            self._answer(
                w.route, m.Reply(id=w.request.id, error="device", detail="the world was reset while this waited")
            )
        self._waiting.clear()

    def _levels(self, name: str, payload: bytes) -> np.ndarray:
        now = self._air.pattern(name)
        levels = np.frombuffer(payload, np.uint8)
        if levels.size != now.size:
            raise Refused("device", f"{levels.size} levels, accepted {now.size}")
        return levels.reshape(now.shape)

    def _patterns(self, name: str, payload: bytes, n: int) -> list[np.ndarray]:
        now = self._air.pattern(name)
        levels = np.frombuffer(payload, np.uint8)
        if levels.size != n * now.size:
            raise Refused("device", f"{levels.size} levels, accepted {n} times {now.size}")
        return list(levels.reshape(n, *now.shape))

    def _same_world(self, seed: int) -> None:
        if seed != self._air.seed:
            raise Refused("new_world", "the world was reset")

    def _name(self, request: m.Request) -> str:
        session = self._sessions.get(request.session)
        if session is None:
            raise Refused("off_air", "the device is not attached to this world: configure() attaches it again")
        if session.gone:
            kind = "replaced" if session.gone == _REPLACED else "off_air"
            raise Refused(kind, f"dropped from the air: {session.gone}; what it sent since is lost")
        return session.name

    # ---------------------------------------------------------------- the air rule

    def _check_size(self, name: str, n_samples: int) -> None:
        """Refuse what does not fit into one answer."""
        most = m.MAX_SAMPLES // self._air.n_antennas(name)
        if n_samples > most:
            raise Refused("device", f"{n_samples} samples, accepted {most}")

    def _begin_train(self, route: bytes, request: m.ReceiveMany, name: str, now: float) -> None:
        """Wait for every window of a train; those that are refused at once fail alone."""
        self._waiting = [w for w in self._waiting if w.name != name]
        train = _Train([None] * len(request.windows), open=len(request.windows))
        waiting = _Waiting(route, request, name, [], now + request.timeout_s, train)
        for index, asked in enumerate(request.windows):
            window = _Window(asked, 0, index)
            try:
                end = self._air.check_reception(name, asked.start, asked.n_samples)
            except Refused as exc:
                if exc.kind != "device":
                    raise
                self._fail(waiting, window, "device", exc.detail)
                continue
            waiting.windows.append(_Window(asked, end, index))
        if waiting.windows:
            self._waiting.append(waiting)

    def _complete(self, ready: list[_Due]) -> None:
        """Compute receptions together or, if the air refuses one of them, one by one."""
        receptions = [Reception(w.name, x.asked.start, x.asked.n_samples, x.asked.shift) for w, x in ready]
        try:
            heard = self._air.hear_many(receptions) if receptions else []
        except Refused as exc:
            if len(ready) == 1:
                self._fail(*ready[0], exc.kind, exc.detail)
                return
            for due in ready:
                self._complete([due])
            return
        except Exception as exc:  # as for any other request, only its sender is affected
            log.error("a reception could not be computed: %s: %s", type(exc).__name__, exc)
            log.debug("", exc_info=True)
            if len(ready) > 1:
                for due in ready:
                    self._complete([due])
                return
            self._strike(ready[0][0].route)
            self._fail(*ready[0], "device", f"could not be computed: {type(exc).__name__}: {printable(str(exc))}")
            return
        for (w, window), samples in zip(ready, heard, strict=True):
            if w.train is None:
                reply = m.Reply(id=w.request.id, now=self._air.now(w.name), seed=self._air.seed)
                self._answer(w.route, reply, samples)
            else:
                w.train.fields[window.index] = samples
                self._close(w, w.train)

    def _fail(self, w: _Waiting, window: _Window, error: Any, detail: str) -> None:
        if w.train is None:
            self._answer(w.route, m.Reply(id=w.request.id, error=error, detail=detail))
            return
        w.train.failed.append(m.Failure(window=window.index, error=error, detail=detail))
        self._close(w, w.train)

    def _close(self, w: _Waiting, train: _Train) -> None:
        """Count a window of a train as done; with the last one, answer."""
        train.open -= 1
        if not train.open:
            self._answer(w.route, *train.answer(w.request.id, self._air.now(w.name), self._air.seed))

    def _drop_silent(self, now: float) -> None:
        """Drop radios for whose declaration others waited too long. A radio that waits itself is not silent."""
        waiting = {w.name for w in self._waiting}
        needed = {n for w in self._waiting if self._wall_s(w.end) <= now for n in self._air.undeclared(w.name, w.end)}
        needed -= waiting
        self._lagging = {n: v for n, v in self._lagging.items() if n in needed}
        for name in needed:
            horizon = self._air.stations[name].horizon
            since, was = self._lagging.get(name, (now, horizon))
            if was != horizon:
                since = now
            self._lagging[name] = (since, horizon)
            if now - since >= self._peer_timeout_s:
                for session in self._sessions.values():
                    if session.name == name and not session.gone:
                        session.gone = f"others waited {self._peer_timeout_s:g} s for it to declare what it sends"
                self._air.drop(name)
                del self._lagging[name]

    def _end(self, token: str, why: str) -> None:
        session = self._sessions[token]
        session.gone = why
        self._air.leave(session.name)
        self._waiting = [w for w in self._waiting if w.name != session.name]

    def _pass_time(self, now: float) -> None:
        """In wall pace, advance the air's time to the wall clock's: requests can be late, and no reception waits for a
        radio."""
        if self._paced:
            self._air.pass_time(to_ticks(now - self._began))

    def _wall_s(self, tick: int) -> float:
        """Return the wall time before which an answer about a tick must not be sent."""
        return self._began + to_seconds(tick) if self._paced else -math.inf

    def _answer(self, route: bytes, reply: m.Reply, payload: Any = None) -> None:
        if (line := self.lines.get(route)) is not None:
            line(reply, payload)
            return
        header = m.encode(reply)
        self._send(route, [header] if payload is None else [header, np.ascontiguousarray(payload)])


def _id_of(frames: list[bytes]) -> int:
    try:
        found = msgspec.msgpack.decode(frames[0][: m.MAX_HEADER_BYTES])["id"]
        return found if type(found) is int and 0 <= found <= 1 << 53 else 0
    except Exception:  # only the sender of such a message gets no answer
        return 0
