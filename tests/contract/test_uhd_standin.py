"""The stand-in for UHD against the real module, which runs in the system's Python where Debian's python3-uhd is.

Whatever the stand-in offers, the real module must have: the same names, parameters, defaults, enum values, metadata
fields with the same access, and the same answers to a small program that needs no device. So it cannot drift.
"""

from __future__ import annotations

import ast
import enum
import inspect
import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sim_backend.emulators import uhd_standin
from sim_backend.emulators.uhd_standin import UhdStandIn
from testbed.core.world import DriverContext

UHD = UhdStandIn(DriverContext(seed=1, world=None, identity=None, state_dir=Path()))
"""Nothing on its shelf."""

DUMP = """
import inspect, json, uhd
def member(cls, name):
    found = inspect.getattr_static(cls, name)
    if isinstance(found, property):
        return {"field": found.fset is not None}
    function = getattr(cls, name)
    try:
        return {"python": str(inspect.signature(function))}
    except (TypeError, ValueError):
        return {"pybind": function.__doc__ or ""}
def describe(cls):
    if hasattr(cls, "__members__"):
        return {"enum": {k: int(v) for k, v in cls.__members__.items()}}
    return {"members": {n: member(cls, n) for n in dir(cls) if n == "__init__" or not n.startswith("_")}}
classes = {"types." + n: getattr(uhd.types, n) for n in dir(uhd.types)}
classes |= {"usrp." + n: getattr(uhd.usrp, n) for n in dir(uhd.usrp)}
classes |= {"PropertyTree": uhd.libpyuhd.property_tree, "StringProperty": uhd.libpyuhd.property__str}
print(json.dumps({n: describe(c) for n, c in classes.items() if inspect.isclass(c)}
                 | {"find": {"members": {"find": {"pybind": uhd.find.__doc__}}}}))
"""

PROGRAM = '''
def answers(uhd):
    """What a driver does with UHD's objects before there is a device, as text."""
    t, out = uhd.types, []
    for seconds in (0.0, 1.75, -1.25, 1.9999999999, 12345.678901234):
        time = t.TimeSpec(seconds)
        out.append((time.get_full_secs(), time.get_frac_secs(), time.get_real_secs()))
    command = t.StreamCMD(t.StreamMode.num_done)
    out.append((command.num_samps, command.stream_now, command.time_spec.get_real_secs()))
    command.num_samps, command.stream_now, command.time_spec = 7, False, t.TimeSpec(0.5)
    out.append((command.num_samps, command.stream_now, command.time_spec.get_real_secs()))
    meta = t.TXMetadata()
    out.append((meta.has_time_spec, meta.start_of_burst, meta.end_of_burst, meta.time_spec.get_real_secs()))
    meta = t.RXMetadata()
    out.append((meta.error_code == t.RXMetadataErrorCode.none, meta.has_time_spec, meta.out_of_sequence))
    out.append((meta.strerror(), meta.time_spec.get_real_secs()))
    out.append(t.TXAsyncMetadata().event_code in {c: 0 for c in (t.TXMetadataEventCode.burst_ack,)})
    out.append(t.TuneRequest(2.4e9).target_freq)
    args = uhd.usrp.StreamArgs("fc32", "sc16")
    args.channels = [0]
    out.append((args.cpu_format, args.otw_format, list(args.channels)))
    out.append(uhd.usrp.SubdevSpec("A:A").to_string())
    span = t.MetaRange(0.0, 10.0, 0.5)
    out.append((span.start(), span.stop(), span.step(), span.clip(12.0), span.clip(3.3, True)))
    out.append((t.SensorValue("Ref", True, "locked", "unlocked").to_bool(),
                t.SensorValue("Ref", False, "locked", "unlocked").value,
                t.SensorValue("Ref", False, "locked", "unlocked").unit))
    out.append(sorted(t.DeviceAddr("type=b200,serial=30AB").to_dict().items()))
    out.append([a.to_dict() for a in uhd.find("serial=nonesuch")])
    for object, name, value in ((meta, "error_code", 1), (command, "no_such", 1), (t.TXMetadata(), "no_such", 1)):
        try:
            setattr(object, name, value)
        except AttributeError:
            out.append("AttributeError")
    try:
        uhd.usrp.MultiUSRP("serial=nonesuch")
    except RuntimeError as exc:
        out.append(str(exc))
    return repr(out)
'''

MADE_BY_UHD = ("PropertyTree", "StringProperty", "usrp.RXStreamer", "usrp.TXStreamer")
"""Only UHD itself constructs these."""


@cache
def system_python() -> str:
    """Return a Python in which `import uhd` works, or skip."""
    for python in ("/usr/bin/python3", shutil.which("python3") or "python3"):
        try:
            ready = subprocess.run([python, "-c", "import uhd"], capture_output=True, timeout=240, check=False)
        except OSError:
            continue
        if ready.returncode == 0:
            return python
    pytest.skip("no system Python with UHD: apt-get install python3-uhd")


def run_in_system_python(code: str) -> str:
    done = subprocess.run(
        [system_python(), "-c", code], capture_output=True, text=True, timeout=240, check=True, env={"PATH": "/usr/bin"}
    )
    return done.stdout.strip().splitlines()[-1]  # UHD greets first


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_in_system_python(DUMP))
    return found


def stand_in_classes() -> dict[str, type]:
    found = {f"types.{n}": c for n, c in vars(UHD.types).items()} | {f"usrp.{n}": c for n, c in vars(UHD.usrp).items()}
    return found | {"PropertyTree": uhd_standin.PropertyTree, "StringProperty": uhd_standin.StringProperty}


def parameters_of(function: Any) -> list[tuple[str, Any]]:
    """Return (name, default) of a stand-in's function, `self` apart."""
    named = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    return [(p.name, "required" if p.default is p.empty else p.default) for p in named]


def overloads(doc: str, name: str) -> list[list[tuple[str, Any]]]:
    """Return (name, default) lists out of a pybind docstring, one an overload."""
    found = []
    for inside in re.findall(rf"\b{name}\((.*)\) -> ", doc):
        if inside == "*args, **kwargs":
            continue
        parameters = []
        for text in re.split(r", (?=\w+: )", inside):
            before, _, default = text.partition(" = ")
            parameters.append((before.partition(":")[0], ast.literal_eval(default) if default else "required"))
        found.append([p for p in parameters if p[0] != "self"])
    return found


def fields_of(cls: type) -> dict[str, bool]:
    """Return the stand-in's data fields and whether they may be written."""
    slots = {n: True for n in getattr(cls, "__slots__", ()) if not n.startswith("_")}
    return slots | {n: v.fset is not None for n, v in vars(cls).items() if isinstance(v, property)}


def disagreements(name: str, cls: type, real: dict[str, Any]) -> list[str]:
    """Return what the stand-in's class has and the real one has not, or has otherwise."""
    if name not in real:
        return [f"{name}: no such class in UHD"]
    if issubclass(cls, enum.Enum):
        mine, theirs = {m.name: m.value for m in cls}, real[name]["enum"]
        return [] if mine == theirs else [f"{name}: {mine}, in UHD {theirs}"]
    wrong, members = [], real[name]["members"]
    for field, writable in fields_of(cls).items():
        if members.get(field) != {"field": writable}:
            wrong.append(f"{name}.{field}: writable {writable}, in UHD {members.get(field)}")
    for method, function in inspect.getmembers(cls, inspect.isfunction):
        if method.startswith("_") and method != "__init__":
            continue
        if method == "__init__" and name in MADE_BY_UHD:
            continue
        theirs = members.get(method, {})
        if "python" in theirs:
            expected = [parameters_of_text(theirs["python"])]
        else:
            expected = overloads(theirs.get("pybind", ""), method)
        if parameters_of(function) not in expected:
            wrong.append(f"{name}.{method}{inspect.signature(function)}, in UHD {expected or 'missing'}")
    return wrong


def parameters_of_text(signature: str) -> list[tuple[str, Any]]:
    scope: dict[str, Any] = {}
    exec(f"def f{signature}: ...", scope)  # a signature that inspect printed
    return parameters_of(scope["f"])


@pytest.mark.parametrize("name", sorted(stand_in_classes()))
def test_class_is_as_in_uhd(name: str, real: dict[str, Any]) -> None:
    assert disagreements(name, stand_in_classes()[name], real) == []


def test_find_is_as_in_uhd(real: dict[str, Any]) -> None:
    assert parameters_of(UHD.find) in overloads(real["find"]["members"]["find"]["pybind"], "find")


def test_objects_answer_as_in_uhd() -> None:
    scope: dict[str, Any] = {}
    exec(PROGRAM, scope)
    assert scope["answers"](UHD) == run_in_system_python(PROGRAM + "\nimport uhd\nprint(answers(uhd))")


def test_the_real_module_loads_cleanly_here_or_is_refused(tmp_path: Path) -> None:
    """Built for another NumPy than this environment's, it must not get as far as its first, fatal, use of an array."""
    where = Path(run_in_system_python("import uhd\nprint(uhd.__file__)")).parent
    (tmp_path / "uhd").symlink_to(where)
    code = (
        f"import sys\nsys.path.append({str(tmp_path)!r})\nfrom firmware_ctl.radios.usrp import load_uhd\n"
        "try:\n    load_uhd()\n    print('loaded')\nexcept ImportError as exc:\n    print(exc)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert "_ARRAY_API" not in done.stdout + done.stderr
    assert done.stdout.strip() == "loaded" or "built for NumPy 1" in done.stdout or "cannot be imported" in done.stdout


class _Renamed:
    def get_real_seconds(self) -> float: ...


class _Extra:
    def get_real_secs(self, digits: int = 3) -> float: ...


class _Default:
    def recv(self, np_array: Any, metadata: Any, timeout: float = 0.2) -> int: ...


class _Field:
    __slots__ = ("no_such_field",)


class _Writable:
    __slots__ = ("error_code",)


class _Code(enum.Enum):
    none = 0
    timeout = 3


@pytest.mark.parametrize(
    ("name", "drifted"),
    [
        ("types.TimeSpec", _Renamed),
        ("types.TimeSpec", _Extra),
        ("usrp.RXStreamer", _Default),
        ("types.TXMetadata", _Field),
        ("types.RXMetadata", _Writable),
        ("types.RXMetadataErrorCode", _Code),
        ("types.NoSuchClass", SimpleNamespace),
    ],
)
def test_classes_that_differ_are_reported(name: str, drifted: type, real: dict[str, Any]) -> None:
    """The comparison above fails on classes that differ from UHD's: it can fail."""
    assert disagreements(name, drifted, real)
