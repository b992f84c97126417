"""Starts and stops the processes of a lab on this machine: keys first, then the world, then the nodes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from testbed.config import devices, state_root
from testbed.core import folders, identity, logs, registry, seeds
from testbed.core.clock import TIME_OF_DAY
from testbed.core.config import Experiment, Lab, RadioPlan, Scene, is_rehearsal
from testbed.core.errors import InputError, TestbedError
from testbed.core.identity import Identity
from testbed.core.memory import collected_seldom, keep_freed
from testbed.core.radio import Radio
from testbed.core.ris import Board
from testbed.core.threads import ONE_THREAD
from testbed.core.world import DriverContext
from testbed.lab import fault_plan
from testbed.lab.fault_plan import Fault
from testbed.lab.spares import Process, Spare, Spares

if TYPE_CHECKING:  # imported only where a run is driven, because nodes and the air do not need it
    from testbed.coordinator.past import Origin
    from testbed.coordinator.server import Coordinator, Outcome, Progress
    from testbed.records.recorded import RecordedRun

_WORLD_START_S = 60.0
_LIBRARY_S = 120.0
_BAD_INPUT = 2
"""Exit status of a daemon that refuses its input."""
MAX_RESTARTS = 3
"""How many times a node of this machine that dies within a run is started again."""
_GRACE_S = 3.0
"""A process that was asked to finish gets this long before it is terminated, and again before it is killed."""


def lab_folder(lab: Lab) -> Path:
    """Return the folder of a lab's transport keys, node states and logs."""
    return state_root() / lab.name


def make_lab_folder(lab: Lab) -> Path:
    """Return the lab's folder, made; raises InputError where it cannot be."""
    folder = lab_folder(lab)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as exc:
        raise InputError(
            f"{folder}: the lab's state cannot be kept there: {exc.strerror}; accepted: a folder that can be written, "
            "chosen by the variable TESTBED_STATE"
        ) from exc
    return folder


def daemon_names(lab: Lab) -> list[str]:
    return ["coordinator", *(["world"] if lab.world else []), *lab.node]


def local_names(lab: Lab) -> list[str]:
    """Return the daemons that the lab calls local."""
    local = {"coordinator": lab.coordinator.local, "world": lab.world is not None and lab.world.local}
    local |= {name: place.local for name, place in lab.node.items()}
    return [name for name, here in local.items() if here]


def make_keys(lab: Lab, names: list[str]) -> Path:
    """Make the transport keys of these daemons where they have none; returns their folder.

    Each machine makes the pairs of its own daemons and no others.
    """
    folder = lab_folder(lab) / "transport"
    for name in names:
        identity.make(folder, name)
    return folder


def load_identity(lab: Lab, name: str) -> Identity | None:
    """Return a daemon's identity, or None where the lab switched authentication off."""
    return identity.load(lab_folder(lab) / "transport", name, daemon_names(lab)) if lab.curve else None


def own_identity(lab: Lab, name: str) -> Identity | None:
    """Return a daemon's identity with the public keys that are on this machine, which is enough for its own air.

    None where the lab switched authentication off. Raises InputError if the daemon's own pair of keys is missing.
    """
    folder = lab_folder(lab) / "transport"
    known = [n for n in daemon_names(lab) if n == name or (folder / f"{n}.public").exists()]
    return identity.load(folder, name, known) if lab.curve else None


def node_state_dir(lab: Lab, name: str) -> Path:
    folder = lab_folder(lab) / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def new_run_folder(parent: Path, experiment_name: str) -> Path:
    """Return a fresh folder `<parent>/<UTC time>-<experiment>`, made."""
    stamp = datetime.fromtimestamp(TIME_OF_DAY.now_s(), UTC).strftime("%Y%m%d-%H%M%S")
    folders.make(parent)
    for suffix in ("", *(f"-{i}" for i in range(2, 100))):
        folder = parent / f"{stamp}-{experiment_name}{suffix}"
        try:
            folder.mkdir(mode=0o700)  # raw bits are stored in it
        except FileExistsError:
            continue
        except OSError as exc:
            raise InputError(f"{folder}: cannot be made: {exc.strerror}") from exc
        return folder
    raise InputError(f"{parent}: no free name for a run folder")


@contextlib.contextmanager
def unless_empty(folder: Path) -> Iterator[None]:
    """Remove a run's folder again where it stayed empty: no command could read it as a run."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def emulators(lab: Lab, source: str, driver: Any, plan: Experiment | None) -> Iterator[Callable[[str], None]]:
    """Yield a function to call with the air's endpoint once the air is served. It starts the lab's emulated devices,
    puts a plan's scene into the air, and prints all addresses as one line of JSON. Leaving the block closes the
    devices.
    """
    devices: dict[str, Any] = {}
    assert lab.world is not None
    options = lab.world.emulators

    def announce(endpoint: str) -> None:
        who = own_identity(lab, "world")
        if plan is not None:
            driver.reset(endpoint, who, plan.scene, plan.radio, plan.seed, _WORLD_START_S)
        print(json.dumps({"endpoint": endpoint, "devices": {n: d.uri for n, d in devices.items()}}), flush=True)

    def ready(endpoint: str) -> None:
        for name in options:
            context = DriverContext(
                seed=seeds.derive(0, lab.name, name), world=endpoint, identity=own_identity(lab, "world"),
                state_dir=node_state_dir(lab, name),
            )  # fmt: skip
            try:
                device = driver.emulate(name, lab.node[name].driver, context, options[name])
            except InputError as exc:
                raise InputError(f"{source}: {exc}") from exc
            if device is not None:
                devices[name] = device
        # It has a thread of its own, because the present thread serves the air as soon as this function returns.
        threading.Thread(target=announce, args=(endpoint,), daemon=True).start()

    try:
        yield ready
    finally:
        for device in devices.values():
            device.close()


class Crew:
    """The local processes of one run. They end when this process does, because it holds their standard input."""

    def __init__(
        self, lab: Lab, lab_name: str, kills: Mapping[str, int] | None = None, spares: Spares | None = None
    ) -> None:
        """`kills`: how many times each node will be killed on purpose; these restarts are allowed in addition.
        `spares`: processes that become the daemons; new ones are started where there are none."""
        self._lab, self._lab_name = lab, lab_name
        self._kills, self._spares = kills or {}, spares or Spares()
        self._logs = lab_folder(lab) / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._processes: dict[str, Process] = {}
        self._reported: set[str] = set()
        self._untold: set[str] = set()
        """Nodes that were started and were not sent the air's address yet."""
        self._restarts: dict[str, int] = {}
        self._devices: dict[str, str] = {}
        """Node → URI of its emulated device."""

    def begin_world(self) -> None:
        """Start the simulated air, and the devices emulated on it, where the lab calls it local."""
        if self._lab.world is not None and self._lab.world.local:
            self._start("world", "sim", {}, stdout=subprocess.PIPE)

    def world_endpoint(self) -> str | None:
        """Return the address of the simulated air, once it can be used; None in a lab without one."""
        place = self._lab.world
        if place is None:
            return None
        if not place.local:
            return f"tcp://{place.host}:{place.port}"
        process = self._processes["world"]
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(_WORLD_START_S) else b""
        try:
            ready = json.loads(line)
            self._devices = dict(ready["devices"])
            return str(ready["endpoint"])
        except (ValueError, KeyError) as exc:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=_GRACE_S)
            words = self._last_words("world")
            if process.poll() == _BAD_INPUT:  # a device that is emulated on it refused its options
                raise InputError(words.removeprefix("testbed: ")) from exc
            raise TestbedError(f"the simulated air did not start: {words}") from exc

    def device_uri(self, name: str) -> str | None:
        """Return where a node's emulated device is, None where it has none."""
        return self._devices.get(name)

    def start_node(self, name: str) -> None:
        """Start a node; it loads its libraries, then waits for the addresses."""
        self._start(name, "node", {"name": name})
        self._untold.add(name)

    def tell_node(self, name: str, coordinator: str, world: str | None) -> None:
        """Send a node the addresses of the coordinator, of the simulated air (None without one), and of its device
        where that is emulated."""
        self._untold.discard(name)
        pipe = self._processes[name].stdin
        assert pipe is not None
        line = json.dumps({"coordinator": coordinator, "world": world, "uri": self._devices.get(name)})
        with contextlib.suppress(OSError):  # it has died already, which `gone` reports
            pipe.write(line.encode() + b"\n")
            pipe.flush()

    def _start(self, name: str, command: str, options: Mapping[str, str], stdout: int = subprocess.DEVNULL) -> Process:
        # Every daemon computes in a single thread; BLAS threads would only compete for the cores.
        environment = {**ONE_THREAD, "TESTBED_STATE": str(state_root())}
        path, again = self._logs / f"{name}.log", name in self._restarts
        process: Process | None = None if again else self._spares.take()
        with open(path, "ab" if again else "wb") as log:
            if isinstance(process, Spare):
                process.begin(command, {**options, "lab": self._lab_name}, environment, path, stdout)
            else:
                arguments = [command, *options.values(), "--lab", self._lab_name, "--supervised"]
                process = subprocess.Popen(
                    [sys.executable, "-m", "testbed", *arguments],
                    stdin=subprocess.PIPE, stdout=stdout, stderr=log, env={**os.environ, **environment},
                    start_new_session=True,  # Ctrl-C reaches this process only, which orders the nodes to finish
                )  # fmt: skip
        self._processes[name] = process
        return process

    def restart_node(self, name: str, coordinator: str, world: str | None) -> bool:
        """Restart a node that has died; False where that was done too often, or where it refused its input."""
        suffered = MAX_RESTARTS + self._kills.get(name, 0)
        if self._processes[name].poll() in (0, _BAD_INPUT) or self._restarts.get(name, 0) >= suffered:
            return False
        self._restarts[name] = self._restarts.get(name, 0) + 1
        self._close_pipes(self._processes[name])
        self.start_node(name)
        self._reported.discard(name)
        self.tell_node(name, coordinator, world)
        return True

    def was_killed(self, name: str) -> bool:
        """Return whether a process has ended by a signal."""
        return (self._processes[name].poll() or 0) < 0

    def process(self, name: str) -> Process:
        return self._processes[name]

    def pid(self, name: str) -> int:
        return self._processes[name].pid

    def gone(self) -> list[tuple[str, str]]:
        """Return processes that have ended since the last call, with how."""
        out = []
        for name, process in self._processes.items():
            code = process.poll()
            if code is not None and name not in self._reported:
                self._reported.add(name)
                how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
                words = self._last_words(name) if code > 0 else ""
                out.append((name, f"process ended: {how}" + (f": {words}" if words else "")))
        return out

    def _last_words(self, name: str) -> str:
        path = self._logs / f"{name}.log"
        lines = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f"{logs.message_of(lines[-1])} (log: {path})" if lines else f"its log is empty ({path})"

    def pids(self) -> list[int]:
        """Return the numbers of all processes that are running."""
        return [process.pid for process in self._processes.values() if process.poll() is None]

    def stop(self) -> None:
        """Wait for the processes to end, then terminate them, then kill them; each wait is bounded."""
        processes = list(self._processes.values())
        for name in self._untold:  # these wait for a line that will not come
            self._close_pipes(self._processes[name])
        if "world" in self._processes:
            self._processes["world"].terminate()
        self._wait(processes)
        for process in processes:
            if process.poll() is None:
                process.terminate()
        self._wait(processes)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=_GRACE_S)
            self._close_pipes(process)

    @staticmethod
    def _close_pipes(process: Process) -> None:
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    @staticmethod
    def _wait(processes: list[Process]) -> None:
        deadline_s = time.monotonic() + _GRACE_S
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, deadline_s - time.monotonic()))


def start_air(lab: Lab, crew: Crew, scene: Scene, radio: RadioPlan, seed: int) -> str:
    """Start the simulated air where it is this machine's and put a scene into it; returns its endpoint."""
    crew.begin_world()
    endpoint = crew.world_endpoint()
    assert lab.world is not None
    assert endpoint is not None
    if lab.world.local:  # one that is elsewhere may be in use, and keeps the scene it has
        who = own_identity(lab, "coordinator" if lab.coordinator.local else "world")
        registry.load_driver("worlds", lab.world.driver).reset(endpoint, who, scene, radio, seed, _WORLD_START_S)
    return endpoint


def open_device(lab: Lab, name: str, crew: Crew, air: str | None) -> Radio | Board:
    """Open a node's device in this process, as its daemon would; raises InputError for refused options."""
    context = DriverContext(
        seed=seeds.derive(0, lab.name, name), world=air,
        identity=None if air is None else own_identity(lab, name),  # for the air; a real device asks for none
        state_dir=node_state_dir(lab, name),
    )  # fmt: skip
    uri = crew.device_uri(name)
    if uri is not None:
        lab.node[name].options["uri"] = uri
    return devices.open_device(lab, name, context)


def prepare_pools(experiment: Experiment, lab: Lab, lab_name: str) -> None:
    """Have the ends' pools of one-time authentication ready where a run draws on them; raises InputError."""
    if lab.wegman_carter and not is_rehearsal(lab, experiment):
        from testbed.lab import pools

        pools.prepare(lab, lab_name)


def collect_iq(coordinator: Coordinator) -> None:
    """Move what local nodes recorded into the run's folder; remote nodes keep theirs.

    What cannot be moved, such as to a full disk, stays in the node's own folder, and the run says so.
    """
    for name, place in coordinator.lab.node.items():
        source = lab_folder(coordinator.lab) / name / "iq" / coordinator.run_name
        if not place.local or not source.is_dir():
            continue
        try:
            _move_all(source, coordinator.folder / "iq")
        except OSError as exc:
            detail = f"{source}: its recordings stay there: {exc.strerror or exc}"
            coordinator.record("iq_stays", {"node": name, "detail": detail}, shown=True)


def _move_all(source: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        try:
            shutil.move(path, to / path.name)
        except OSError:
            if path.exists():  # a part of it was copied to another disk
                (to / path.name).unlink(missing_ok=True)
            raise
    source.rmdir()


def run(
    experiment: Experiment,
    lab: Lab,
    lab_name: str,
    folder: Path,
    progress: Callable[[Progress], None] = lambda _: None,
    on_coordinator: Callable[[Coordinator, Crew], None] = lambda *_: None,
    origin: Origin | None = None,
    dead: RecordedRun | None = None,
    spares: Spares | None = None,
) -> Outcome:
    """Run an experiment: start the local processes, drive the run to its end, stop the processes.

    `on_coordinator` is called once everything is started (for signal handlers, and for tests that kill a node).
    `origin`: how the run was started, for its record. `dead`: the record of the run that is resumed. `spares`:
    processes that become the daemons, as far as there are any.
    """
    driver = registry.load_driver("worlds", lab.world.driver) if lab.world is not None else None
    if driver is not None:
        driver.check(experiment.scene)
    if lab.curve:
        make_keys(lab, ["coordinator", *local_names(lab)])
    prepare_pools(experiment, lab, lab_name)
    faults: list[Fault] = []
    if experiment.faults is not None:
        victims = fault_plan.nodes_of(experiment.faults, experiment, lab, lab_name)
        faults = fault_plan.plan(experiment.faults, experiment, victims)
    crew = Crew(lab, lab_name, fault_plan.kills(faults), spares)
    with contextlib.ExitStack() as stack:
        closing = stack.enter_context(contextlib.ExitStack())
        stack.callback(crew.stop)
        crew.begin_world()  # the nodes need it, and it needs nobody
        from testbed.coordinator.events import ProcessEnded
        from testbed.coordinator.server import Coordinator

        coordinator = Coordinator(lab, experiment, folder, load_identity(lab, "coordinator"), origin=origin, dead=dead)
        closing.callback(coordinator.close)
        keep_freed()
        stack.enter_context(collected_seldom())
        through = _rehearse(experiment, faults, coordinator, crew, stack)
        coordinator.check_disk()
        endpoint = f"tcp://{lab.coordinator.host}:{coordinator.port}"
        local = [name for name in coordinator.state.nodes if lab.node[name].local]
        # The nodes are started at the same time as the air, because loading libraries takes most of the time.
        for name in local:
            crew.start_node(name)
        world = crew.world_endpoint()
        if driver is not None and world is not None and experiment.scene.uma is not None:
            # The channel model's library loads slowly. The scene is put into the air before the nodes join, because
            # they wait for a limited time only.
            who, e = load_identity(lab, "coordinator"), experiment
            driver.reset(world, who, e.scene, e.radio, e.seed, _LIBRARY_S)
        airs = {name: None if world is None else through("air", name, world) for name in local}
        ways = {name: through("control", name, endpoint) for name in local}
        for name in local:
            crew.tell_node(name, ways[name], airs[name])
        if spares is not None:
            spares.close()
        on_coordinator(coordinator, crew)

        def ended() -> list[ProcessEnded]:
            """Return which processes have died; a node that had joined the run, or was killed, is restarted."""
            out = []
            for name, detail in crew.gone():
                node = coordinator.state.nodes.get(name)
                # A node that ends by itself before it has greeted would do so again.
                joined = node is not None and (node.incarnation != "" or crew.was_killed(name))
                again = joined and not coordinator.is_ending and crew.restart_node(name, ways[name], airs[name])
                out.append(ProcessEnded(name, detail + ("; it is restarted" if again else ""), is_final=not again))
            return out

        return coordinator.run(world, ended, progress, lambda: collect_iq(coordinator))


def _rehearse(
    experiment: Experiment, faults: Sequence[Fault], coordinator: Coordinator, crew: Crew, stack: contextlib.ExitStack
) -> Callable[[str, str, str], str]:
    """Prepare the faults of an experiment that has some; returns the function (link, node, address) → address that
    leads a node's connection through the faulty line."""
    if experiment.faults is None:
        return lambda link, node, endpoint: endpoint
    from testbed.lab.rehearsal import Rehearsal

    seed = experiment.seed if experiment.faults.seed is None else experiment.faults.seed
    faults = [fault for fault in faults if fault.round >= coordinator.state.probed]  # a resumed run has had the others
    made = stack.enter_context(
        Rehearsal(experiment.faults, faults, seed, coordinator.lab.curve, crew.process, coordinator.record)
    )
    coordinator.on_round = made.until
    coordinator.disks.free_bytes = made.free_bytes
    victims = experiment.faults.nodes or list(coordinator.state.nodes)

    def through(link: str, node: str, endpoint: str) -> str:
        return made.through(link, node, endpoint) if node in victims else endpoint

    coordinator.way_to_discussion = lambda node, endpoint: through("discussion", node, endpoint)
    return through
