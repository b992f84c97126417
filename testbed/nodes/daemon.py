"""The shell around a node's state machine: sockets, the device, the key store, a heartbeat thread.

`NodeDaemon.run` is the main loop of the whole process. Every wait has a timeout; however the process ends, it first
silences the transmitter.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import zmq

from testbed import __version__
from testbed.chain import amplification
from testbed.config.devices import open_device
from testbed.core import forks, key_file, logs, memory, seeds
from testbed.core.config import Lab, NodePlace
from testbed.core.errors import DeviceError, InputError, TestbedError
from testbed.core.gate import is_identifier, printable
from testbed.core.identity import Identity
from testbed.core.machine import handler_of
from testbed.core.radio import Radio
from testbed.core.ris import Board
from testbed.core.types import Key
from testbed.core.whole import write_whole
from testbed.core.world import DriverContext
from testbed.net import messages as m
from testbed.net import transport
from testbed.net.switchboard import Discussion, Switchboard
from testbed.nodes import calibration, known
from testbed.nodes import events as e
from testbed.nodes.device_thread import DeviceThread, DeviceTurns
from testbed.nodes.operations import BoardWork, Capture, RadioWork, life_of
from testbed.nodes.pool_file import PoolFile
from testbed.nodes.state import NodeState

log = logging.getLogger("testbed.node")
_POLL_MS = 100
_GREET_EVERY_S = 1.0
_A_TURN = 1000
"""Messages of one socket that are handled before anything else: whoever never stops sending holds up nothing."""
_LOCK_S = 0.05
"""How long a halt waits for the device to finish its present operation; after that, the transmitter is silenced from
another thread."""
_LAST_ORDERS_S = 1.0
"""How long a node whose coordinator halts it waits, silenced, for the end of the run on the other connection."""
_SAID_AFTER_S = 2.0
"""Seconds after which a node that no coordinator has welcomed prints what it waits for."""
COORDINATOR_SILENT = 3
"""Exit status of a node whose coordinator was silent for too long."""
_BLOCK_REPORTS = (m.Agreed, m.Trained, m.Attacked, m.Amplified, m.KeyGuessed)
"""Reports on a stage of a block, which may have needed hundreds of megabytes."""
MAX_TROUBLE = 20
"""Number of messages that could not be handled after which the node ends, because the cause seems to be lasting."""


class _Pulse(threading.Thread):
    """Sends heartbeats to the coordinator and receives its answers while the main loop is busy."""

    def __init__(self, daemon: NodeDaemon, wire: transport.Wire, endpoint: str, period_s: float) -> None:
        super().__init__(name="pulse", daemon=True)
        self._node, self._wire, self._endpoint, self._period_s = daemon, wire, endpoint, period_s
        self.last_answer_s = time.monotonic()
        self._over = threading.Event()

    def run(self) -> None:
        link = transport.PulseLink(self._wire, self._endpoint, self._node.name, self._node.incarnation)
        try:
            while not self._over.is_set():
                if self._node.welcomed:
                    link.renew_if_silent()
                    link.send(m.Heartbeat(state=self._node.state.name, dropped=self._node.dropped))
                deadline = time.monotonic() + self._period_s
                while not self._over.is_set() and (left := deadline - time.monotonic()) > 0:
                    if link.socket.poll(int(min(left, 0.1) * 1000) + 1):
                        received = link.receive()
                        if received is None:
                            continue
                        self.last_answer_s = time.monotonic()
                        if isinstance(received[1], m.Finish) and received[1].kind == "halt":
                            self._node.halt(leave_within_s=_LAST_ORDERS_S)
        finally:
            link.socket.close()

    def stop(self) -> None:
        self._over.set()


class NodeDaemon:
    """One node: `name` in the lab file, one device, one role."""

    def __init__(
        self, lab: Lab, name: str, coordinator: str, world: str | None, identity: Identity | None, state_dir: Path,
        shared: Switchboard | None = None,
    ) -> None:  # fmt: skip
        """`shared`: carries the messages where this node shares its process with all others (`nodes.in_turn`)."""
        self.name = name
        logs.about(node=name)
        self.place: NodePlace = lab.node[name]
        self.lab = lab
        self.role = self.place.role
        self.incarnation = transport.new_incarnation()
        with_pool = lab.wegman_carter and self.role in ("alice", "bob")
        self._pool_file = PoolFile(state_dir) if with_pool else None
        self._halted = threading.Event()
        # One process for all nodes may be anybody's, such as a notebook's, whose threads may hold locks.
        may_fork = shared is None and forks.are_safe()
        self.state = NodeState(
            self.role, secrets.randbits(256), self.place.floors,
            identity is not None if shared is None else lab.curve,  # nobody can come between those of one process
            lab.wegman_carter,
            self._pool_file.read() if self._pool_file is not None else None, self.place.private,
            forks.Children(forks.usable_cores(), stopped=self._halted.is_set) if may_fork else None,
        )  # fmt: skip
        self._machine = handler_of(self.state)
        self._trouble = 0
        self.welcomed = False
        self.stays = False
        """Whether the node waits for a coordinator without limit."""
        self.interrupted = False
        """Set when a signal asked for the end."""
        self.say: Callable[[str], None] = lambda _: None
        self._welcomed_by = ""
        """Incarnation of the coordinator whose run this node is part of."""
        self._waits_for = f"the coordinator at {coordinator}"
        self._now_s: Callable[[], float] = time.monotonic if shared is None else shared.turns.now_s
        self._began_s = self._now_s()
        self._lost_after_s = lab.coordinator.join_timeout_s
        self._next_word_s = 0.0
        self._key_trouble = ""
        """Why there is no connection to the coordinator, as far as the handshakes show."""
        self._told_of: Any = None
        """Handshakes of the discussion's link whose trouble is reported."""
        self._state_dir = state_dir
        self._keys_at = str(state_dir.parent / "transport")
        self._recalled = ""
        """The run for which this process of Alice's node has already read its files of earlier blocks."""
        self._device_lock = threading.Lock()
        self._leave_s = 0.0
        """When a node that was halted ends."""
        self._not_silent: DeviceError | None = None
        """Why the transmitter could not be silenced."""
        self._exit: e.Exit | None = None
        context = DriverContext(
            seed=seeds.derive(0, lab.name, name), world=world, identity=identity, state_dir=state_dir
        )
        self._device = open_device(lab, name, context)
        self._wire: transport.Wire | Switchboard = transport.Wire(identity) if shared is None else shared
        self._link = self._wire.link(coordinator, name, self.incarnation)
        self._pulse = (
            _Pulse(self, self._wire, coordinator, lab.coordinator.heartbeat_s)
            if isinstance(self._wire, transport.Wire)
            else None
        )
        self._work: RadioWork | BoardWork = (
            RadioWork(self._device, self.place, state_dir, self._link.send, self._own_time_s)
            if isinstance(self._device, Radio)
            else BoardWork(self._device, name, life_of(self.incarnation))
        )
        self._host: transport.DiscussionHost | Discussion | None = None
        self._guest: transport.DiscussionGuest | Discussion | None = None
        self._dropped_before = 0
        """Number of messages that earlier links to Alice have dropped."""
        self._discussion = ""
        """Endpoint of Bob's link to Alice."""
        self._poller: Any = self._wire.poller()
        self._poller.register(self._link.socket, zmq.POLLIN)
        self._thread = self._device_thread()
        self._captured_life = 0
        """Number of times this node was welcomed to a run: captures of before the latest welcome are discarded."""
        self._public: dict[Any, Any] = {}
        """Socket → reader of the public discussion: Alice's own, Bob's link to her, or Eve's listener."""
        if self.role == "alice":
            bob = lab.by_role("bob")
            assert bob is not None
            self._host = self._wire.discussion_host(self.place.host, self.place.port, bob)
            self._listen(self._host)

    @property
    def dropped(self) -> int:
        """Number of messages that were dropped because too many waited, to be reported with the heartbeats."""
        ends = (self._link, self._host, self._guest, self.state.key_maker)
        return self._dropped_before + sum(end.dropped for end in ends if end is not None)

    def _own_time_s(self) -> float:
        """Return a monotonic clock's reading in s, by which this node's own work is measured."""
        return time.monotonic()

    def _device_thread(self) -> DeviceThread | DeviceTurns:
        thread = DeviceThread()
        self._poller.register(thread.done, zmq.POLLIN)
        return thread

    def _listen(self, to: Any) -> None:
        """Read the public discussion from this source only, and close the previous one."""
        for socket, before in self._public.items():
            self._poller.unregister(socket)
            if before.handshakes is not None:
                before.handshakes.stop()
            socket.close()
        self._public = {to.socket: to}
        self._poller.register(to.socket, zmq.POLLIN)

    # -- life

    def run(self) -> int:
        """Serve until ordered to finish, or the coordinator is silent for too long. Returns the exit status."""
        if self._pulse is not None:
            self._pulse.start()
        try:
            self._greet()
            while self._exit is None:
                self._turn()
        except Exception as exc:  # of any kind: it is reported to the coordinator, and the transmitter is silenced
            self._give_up(exc)
        finally:
            self._close()
        assert self._exit is not None
        if self._exit.code and not (self.stays and self.refused):  # then its starter prints the reason, once
            log.error("%s: stopped: %s", self.name, self._exit.reason)
        return self._exit.code

    def _give_up(self, exc: Exception) -> None:
        """End this node after an error of any kind, and report it."""
        log.error("%s: %s", self.name, exc, exc_info=not isinstance(exc, TestbedError))
        self._link.send(m.Failed(operation="run", state=self.state.name, detail=str(exc) or repr(exc)))
        self._exit = e.Exit(1, str(exc) or repr(exc))

    def _turn(self) -> None:
        """Handle the time, and the messages that arrive within `_POLL_MS`."""
        ready = dict(self._poller.poll(_POLL_MS))
        now_s = self._now_s()
        self._take(e.Tick(now_s))
        if self._thread.has_over:
            self._take_captures()
        if self._link.socket in ready:
            for _ in range(_A_TURN):
                if self._exit is not None or not self._link.waiting():
                    break
                self._from_coordinator()
        for socket, public in list(self._public.items()):
            if socket in ready:
                self._from_discussion(public)
        if self._halted.is_set() and self._exit is None and now_s >= self._leave_s:
            self._exit = e.Exit(0, "halt")
        if now_s > self._next_word_s:
            if self.welcomed:
                self._next_word_s = now_s + self.lab.coordinator.heartbeat_s
                self._link.renew_if_silent()
                self._link.say_here()  # on the connection of the orders, so that a break of it is noticed
                if self._guest is not None:
                    self._guest.say_here()
            else:
                self._greet()  # the coordinator may have started after this node
        self._look_at_handshakes()
        self._look_at_discussion()
        self._look_for_coordinator(now_s)

    def _look_for_coordinator(self, now_s: float) -> None:
        """End the process if the coordinator is silent for too long; a node that stays (a service) waits for its first
        run without limit."""
        assert self._pulse is not None
        silent_s = now_s - self._pulse.last_answer_s
        if not self.welcomed and self._waits_for and now_s - self._began_s > _SAID_AFTER_S:
            self.say(f"{self.name}: waiting for {self._waits_for}")
            self._waits_for = ""
        waits = self.stays and not self._welcomed_by
        if silent_s > self._lost_after_s and self._exit is None and not waits:
            why = f"; {self._key_trouble}" if self._key_trouble else ""
            self._exit = e.Exit(COORDINATOR_SILENT, f"coordinator silent for {silent_s:.1f} s{why}")

    def _look_at_handshakes(self) -> None:
        """Look for a wrong key, which otherwise looks like an absent coordinator. A refused key ends the process."""
        found = self._link.handshakes
        if found is None:
            return
        why = found.trouble("the coordinator", self._key_of("coordinator"), self._key_of(self.name))
        if why is None or why == self._key_trouble:
            return
        self._key_trouble = why
        if found.refused_key:
            self._exit = e.Exit(1, why)
        else:
            log.error("%s: %s", self.name, why)

    def _look_at_discussion(self) -> None:
        """Report a wrong key between this node and Alice's, which otherwise looks like a peer that does not answer."""
        for public in self._public.values():
            if (found := public.handshakes) is None:
                continue
            alice = str(self.lab.by_role("alice"))
            why = found.trouble(f"the node {alice!r}", self._key_of(alice), self._key_of(self.name))
            if why is not None and found is not self._told_of:
                self._told_of = found
                # If her node refuses this key, it is certain, and no block can ever be made.
                operation = "authenticate" if found.refused_key else "discussion"
                self._link.send(m.Failed(operation=operation, state=self.state.name, detail=why))

    def _key_of(self, name: str) -> str:
        """Return the path of a public key."""
        return f"{self._keys_at}/{name}.public"

    def interrupt(self) -> None:
        """Leave the main loop after its present iteration, which silences the transmitter. For signal handlers."""
        self.interrupted, self._leave_s = True, 0.0
        self._halted.set()

    @property
    def refused(self) -> str:
        """Why the coordinator refused this node; '' where it did not."""
        return self.state.refused

    def halt(self, leave_within_s: float = 0.0) -> None:
        """Silence the transmitter now, from any thread, then leave the main loop: at once, or where the end of the run
        is still to be heard, within this time."""
        if not self._halted.is_set():
            self._leave_s = self._now_s() + leave_within_s
        self._halted.set()
        if isinstance(self._device, Radio):
            self._device.interrupt()
        got = self._device_lock.acquire(timeout=_LOCK_S)
        try:
            if isinstance(self._device, Radio):
                self._device.silence()
        except DeviceError as exc:
            log.error("%s: halt: %s", self.name, exc)
        finally:
            if got:
                self._device_lock.release()

    def _close(self) -> None:
        if self._pulse is not None:
            self._pulse.stop()
            self._pulse.join(timeout=2.0)
        if isinstance(self._device, Radio):
            self._device.interrupt()
        self._thread.end(within_s=2.0)
        if self._pool_file is not None:
            self._pool_file.close()
        try:
            with self._device_lock:
                self._device.close()
        except DeviceError as exc:
            log.error("%s: close: %s", self.name, exc)
        self._wire.close()

    def _greet(self) -> None:
        self._next_word_s = self._now_s() + _GREET_EVERY_S
        surface: dict[str, Any] = {}
        extra: dict[str, Any] = {}
        if isinstance(self._device, Board):
            surface = {
                "surface_shape": self._device.shape,
                "phase_bits": self._device.phase_bits,
                "timed": self._device.capabilities.timed,
                "schedule_size": self._device.capabilities.schedule_size,
                "latency_s": self._device.capabilities.latency_s,
            }
        else:
            caps = self._device.capabilities
            surface = {
                "timed": caps.timed,
                "turnaround_s": caps.turnaround_s,
                "n_antennas": caps.n_antennas,
                "longest_capture": caps.longest_capture,
            }
            measured = calibration.read(self._state_dir, self._device.identity())
            extra = calibration.correct(self._device, self.place.correction_ppm, measured)
            if measured is not None:
                surface["host_turnaround_s"] = measured.turnaround_s or 0.0
                surface["timing_spread_s"] = measured.delay_s.std_s if measured.delay_s is not None else 0.0
        self._link.send(
            m.Hello(
                role=self.role,
                identity={**self._device.identity(), **extra, "testbed": __version__},
                pid=os.getpid(),
                discussion_port=self._host.port if self._host else 0,
                transcript_port=self._host.transcript_port if self._host else 0,
                **surface,
            )
        )

    # -- events in

    def _from_coordinator(self) -> None:
        received = self._link.receive()
        if received is None:
            return
        _, body = received
        if self.welcomed and self._link.met != self._welcomed_by:
            self.welcomed = False  # a new process of the coordinator does not know this node
            self._greet()
        if isinstance(body, (m.Pulse, m.Withdrawn)):
            return  # handled by the link itself
        if isinstance(body, m.Welcome):
            self.welcomed, self._welcomed_by = True, self._link.met
            logs.about(run=body.run)
            self._captured_life += 1
            self._link.run = body.run
            self._lost_after_s = body.lost_after_s
            if self._pulse is not None:
                self._pulse.last_answer_s = time.monotonic()
        self._take(e.Received(body))
        if isinstance(body, m.Welcome) and self.state.run == body.run:
            self.state.orders.blocks.known(body.run, self._kept_blocks())
            if (kept := self._model_path()).is_file():
                self._take(e.ModelFound(kept.read_bytes()))
            if self.role in ("alice", "bob"):
                self._recall()

    def _from_discussion(self, public: Any) -> None:
        for _ in range(_A_TURN):
            if not public.socket.poll(0):
                break
            envelope = public.receive()
            if envelope is not None:
                self._take(e.Discussed(envelope))

    def _take(self, event: e.Event) -> None:
        """Hand an event to the state machine and carry out its instructions; the results of device operations are
        further events."""
        todo = deque(self._handle(event))
        while todo:
            instruction = todo.popleft()
            if isinstance(instruction, e.Operate):
                done = self._operate(instruction.body)
                todo.extend(self._handle(done) if done is not None else ())
            elif isinstance(instruction, (e.StoreKey, e.StoreKnown)):
                if (
                    lost := self._store(instruction)
                ) is not None:  # later messages must not be sent if it is not stored
                    todo.clear()
                    self._link.send(m.Failed(operation="amplify", state=self.state.name, detail=lost))
            else:
                _DO[type(instruction)](self, instruction)

    def _handle(self, event: e.Event) -> list[e.Instruction]:
        """Pass an event to the state machine; one that it cannot handle is dropped, and this process goes on."""
        try:
            return self._machine(event)
        except TestbedError:
            raise
        except Exception as exc:
            what = type(event.body if isinstance(event, e.Received) else event).__name__
            detail = f"{what} could not be handled: {type(exc).__name__}: {printable(str(exc))}"
            log.error("%s: %s", self.name, detail)
            log.debug("%s", self.name, exc_info=True)
            self._trouble += 1
            if self._trouble >= MAX_TROUBLE:
                raise TestbedError(f"{MAX_TROUBLE} messages could not be handled, the last one: {detail}") from exc
            return [e.Report(m.Failed(operation=what.lower(), state=self.state.name, detail=detail))]

    # -- instructions

    def _report(self, x: e.Report) -> None:
        if isinstance(x.body, m.Stopped) and self._not_silent is not None:
            return  # it would say that the transmitter is silent
        self._link.send(x.body)
        if isinstance(x.body, _BLOCK_REPORTS):
            memory.give_back()
        if isinstance(x.body, m.Agreed) and self.role == "alice":  # she judges the block, but Eve's attack comes first
            amplification.load()

    def _publish(self, x: e.Publish) -> None:
        if self._host is not None:
            self._host.publish(x.envelope)
            if x.to_peer:
                self._host.send(x.envelope)
        elif self._guest is not None:
            self._guest.send(x.envelope)

    def _store(self, x: e.StoreKey | e.StoreKnown) -> str | None:
        return self._store_key(x.key) if isinstance(x, e.StoreKey) else self._store_known(x.part)

    def _store_key(self, key: Key) -> str | None:
        """Write a verified key into this node's own folder, readable by its owner only; return why it is lost."""
        folder = self._key_folder("rehearsals" if self.state.is_rehearsal else "keys")
        path = folder / f"block-{key.block:04d}.key"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, key_file.content(key.bits), fresh=True)  # never overwritten
        except OSError as exc:
            return f"the key of block {key.block} cannot be kept: {path}: {exc.strerror}"
        return None

    def _drop_key(self, x: e.DropKey) -> None:
        """Delete a key that the other end may not have, if there is one. Its block was given up, without a report."""
        memory.give_back()
        for kind in ("keys", "rehearsals"):
            folder = self._key_folder(kind)
            path = folder / f"block-{x.block:04d}.key"
            if key_file.mark_of(path).exists():
                log.error("%s: %s stays: both ends have reported it, and it may be in use", self.name, path)
                continue
            try:
                path.unlink()
                log.warning("%s: the key of block %d is deleted: the other end may have none", self.name, x.block)
            except FileNotFoundError:
                pass
            except OSError as exc:
                log.error("%s: %s: cannot be deleted: %s", self.name, path, exc.strerror)

    def _keep_keys(self, x: e.KeepKeys) -> None:
        """Mark keys as final; the order is repeated if this node comes back, and at the end of the run."""
        paths = [self._key_folder(kind) / f"block-{n:04d}.key" for n in x.blocks for kind in ("keys", "rehearsals")]
        for path in paths:
            mark = key_file.mark_of(path)
            try:
                if path.exists() and not mark.exists():
                    write_whole(mark, b"")
            except OSError as exc:
                log.error("%s: %s: cannot be written: %s", self.name, mark, exc.strerror)

    def _store_known(self, part: known.Stored) -> str | None:
        """Write what others may know of a block, or its number, to the disk. Returns why that failed, in which case the
        block must not be discussed."""
        kind = type(part).__name__.lower()
        name = "latest" if isinstance(part, known.Numbered) else f"block-{part.block:04d}"
        path = self._known_folder() / f"{name}.{kind}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, known.encode(part))
        except OSError as exc:
            return f"block {part.block} cannot be begun: {path}: {exc.strerror}"
        return None

    def _recall(self) -> None:
        """Give the state machine what an earlier process of this node stored of this run; where there was none, mark
        that this process is the first."""
        folder = self._known_folder()
        first_welcome, self._recalled = folder.name != self._recalled, folder.name
        try:
            if folder.is_dir() and first_welcome:
                paths = [p for p in sorted(folder.iterdir()) if p.suffix in (".begun", ".decided", ".numbered")]
                past = known.Past.of(known.decode(p.read_bytes()) for p in paths)
                self.state.orders.blocks.known(self.state.run, past.latest)
                self._take(e.PastFound(past))
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except (OSError, ValueError) as exc:  # the node then counts as not knowing earlier blocks
            log.error("%s: %s: what was kept of this run cannot be used: %s", self.name, folder, exc)

    def _forget_known(self, x: e.ForgetKnown) -> None:
        shutil.rmtree(self._known_folder(), ignore_errors=True)

    def _known_folder(self) -> Path:
        return self._state_dir / "known" / self._run_name()

    def _key_folder(self, kind: str) -> Path:
        return self._state_dir / kind / self._run_name()

    def _model_path(self) -> Path:
        return self._state_dir / "models" / f"{self._run_name()}.npz"

    def _run_name(self) -> str:
        """Return the run's name as a part of a path; it came from the coordinator."""
        if not is_identifier(self.state.run):
            raise TestbedError(f"the run's name {printable(self.state.run)!r} cannot be part of a path")
        return self.state.run

    def _kept_blocks(self) -> int:
        """Return the highest block of this run of which an earlier process of this node kept a key, −1 for none."""
        kept = (p for kind in ("keys", "rehearsals") for p in self._key_folder(kind).glob("block-*"))
        numbers = (p.stem.removeprefix("block-") for p in kept)
        return max((int(n) for n in numbers if n.isdecimal()), default=-1)

    def _store_pool(self, x: e.StorePool) -> None:
        """Write the remaining pads; raises TestbedError, which ends this node before a tag with a used pad is sent."""
        assert self._pool_file is not None
        self._pool_file.write(x.pool)

    def _store_model(self, x: e.StoreModel) -> None:
        """Write the enhancer's model into this node's own folder, so that a restarted node need not train again."""
        path = self._model_path()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(path, x.model)
        except OSError as exc:
            log.error("%s: the trained model cannot be kept: %s: %s", self.name, path, exc.strerror)

    def _silence(self, x: e.Silence) -> None:
        """Silence the transmitter while the device may still be in an operation, whose result is not reported. Where
        that fails, the other instructions of the run's end are still carried out before this node ends with the error.
        """
        if isinstance(self._device, Radio):
            try:
                self._device.interrupt()
                self._device.silence()
            except DeviceError as exc:
                self._not_silent = exc

    def _leave(self, x: e.Exit) -> None:
        if self._not_silent is not None:
            raise self._not_silent
        self._exit = x

    # -- device operations

    def _operate(self, body: Any) -> e.Event | None:
        """Have the device carry out an order. Returns None for a train of rounds, which has only begun then."""
        operation = type(body).__name__.lower()
        if self._halted.is_set():
            return e.DeviceFault(operation, "halted")
        if isinstance(body, m.Probe) and isinstance(self._work, RadioWork) and self._work.is_blind:
            work = self._work
            found = work.expect(body)
            self._thread.begin(
                (self._captured_life, body), lambda: self._attempt(operation, lambda: work.capture(found))
            )
            return None

        def operate() -> Any:
            return self._attempt(operation, lambda: _OPERATIONS[type(body)](self, body))

        # Where rounds are ordered in steps, no train is; and a change of thread takes a good part of a step's time.
        return operate() if isinstance(body, m.Step) else self._thread.do(operate)

    def _attempt(self, operation: str, work: Callable[[], Any]) -> Any:
        """Return the result of an operation of the device, or its fault."""
        try:
            with self._device_lock:
                if self._halted.is_set():  # the halt came while this thread waited for the lock
                    return e.DeviceFault(operation, "halted")
                return work()
        except (DeviceError, InputError) as exc:
            return e.DeviceFault(operation, str(exc))
        except Exception as exc:
            # Any error of the device's library is reported like an order that the device refuses.
            log.error("%s: %s: %s: %s", self.name, operation, type(exc).__name__, exc)
            log.debug("%s", self.name, exc_info=True)
            return e.DeviceFault(operation, f"{type(exc).__name__}: {printable(str(exc))}")

    def _take_captures(self) -> None:
        """Estimate and report the trains that the device has captured."""
        for (life, order), found in self._thread.take():
            if life != self._captured_life or self._exit is not None:
                continue
            self._take(found if isinstance(found, e.DeviceFault) else self._estimate(order, found))

    def _estimate(self, order: m.Probe, found: Capture) -> e.Event:
        if order.report_captured:
            self._link.send(m.Captured(round=order.round))
        try:
            return self._radio_work().estimate(found)
        except (DeviceError, InputError) as exc:
            return e.DeviceFault("probe", str(exc))
        except Exception as exc:
            log.error("%s: estimate: %s: %s", self.name, type(exc).__name__, exc)
            log.debug("%s", self.name, exc_info=True)
            return e.DeviceFault("probe", f"{type(exc).__name__}: {printable(str(exc))}")

    def _configure(self, body: m.Configure) -> e.Event:
        if self.role == "bob" and not (self.state.is_discussing and self._discussion == body.discussion):
            self._dropped_before += self._guest.dropped if self._guest is not None else 0
            self._guest = self._wire.discussion_guest(body.discussion, str(self.lab.by_role("alice")))
            self._discussion = body.discussion
            self._listen(self._guest)
        if self.role == "eve":
            self._listen(self._wire.eavesdropper(body.transcript, str(self.lab.by_role("alice"))))
        return e.DeviceDone(self._work.configure(body, self.state.run, self.state.seed))

    def _read_clock(self, body: m.ReadClock) -> e.Event:
        return e.DeviceDone(m.ClockReading(device_time_s=self._device.now_s()))

    def _apply(self, body: m.Apply) -> e.Event:
        return e.DeviceDone(self._board_work().apply(body))

    def _apply_next(self, body: m.ApplyNext) -> e.Event:
        return e.DeviceDone(self._board_work().apply_next(body))

    def _schedule(self, body: m.Schedule) -> e.Event:
        return e.DeviceDone(self._board_work().schedule(body))

    def _read_surface(self, body: m.ReadSurface) -> e.Event:
        return e.DeviceDone(self._board_work().read_surface(body))

    def _probe(self, body: m.Probe) -> e.Event:
        """Capture and estimate a train before the next one, where the next one depends on its CSI."""
        logs.about(round=body.round)
        work = self._radio_work()
        return self._estimate(body, work.capture(work.expect(body)))

    def _step(self, body: m.Step) -> e.Event:
        return self._radio_work().step(body)

    def _radio_work(self) -> RadioWork:
        if not isinstance(self._work, RadioWork):
            raise InputError(f"{self.name} drives no radio")
        return self._work

    def _board_work(self) -> BoardWork:
        if not isinstance(self._work, BoardWork):
            raise InputError(f"{self.name} drives no surface")
        return self._work


_OPERATIONS: Mapping[type, Callable[[NodeDaemon, Any], e.Event]] = {
    m.Configure: NodeDaemon._configure,
    m.ReadClock: NodeDaemon._read_clock,
    m.Apply: NodeDaemon._apply,
    m.ApplyNext: NodeDaemon._apply_next,
    m.Schedule: NodeDaemon._schedule,
    m.ReadSurface: NodeDaemon._read_surface,
    m.Probe: NodeDaemon._probe,
    m.Step: NodeDaemon._step,
}
"""Order → the device operation; raises DeviceError or InputError where it cannot be done."""

_DO: Mapping[type, Callable[[NodeDaemon, Any], None]] = {
    e.Report: NodeDaemon._report,
    e.Publish: NodeDaemon._publish,
    e.DropKey: NodeDaemon._drop_key,
    e.ForgetKnown: NodeDaemon._forget_known,
    e.KeepKeys: NodeDaemon._keep_keys,
    e.StorePool: NodeDaemon._store_pool,
    e.StoreModel: NodeDaemon._store_model,
    e.Silence: NodeDaemon._silence,
    e.Exit: NodeDaemon._leave,
}
"""Instruction → the method that carries it out."""
