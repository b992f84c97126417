"""What has a name is found, in its folder and by entry point; what is broken is named and takes nothing else down."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from testbed import cli
from testbed.core import registry
from testbed.core.errors import InputError

QUANTIZER = """
from testbed.chain.quantize.scalar import Scalar

class {name}(Scalar):
    "Cuts as `scalar` does."
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a folder whose files are quantizers as ours are."""
    package = importlib.import_module("testbed.chain.quantize")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("testbed.chain.quantize."):
            del sys.modules[name]


def install(where: Path, monkeypatch: pytest.MonkeyPatch, distribution: str, lines: str, **modules: str) -> None:
    """Put a distribution with these entry points and modules on sys.path."""
    info = where / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(lines)
    for name, text in modules.items():
        (where / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(where))


@pytest.mark.parametrize("kind", registry.KINDS)
def test_everything_of_ours_can_be_used(kind: str) -> None:
    assert registry.names(kind, ours=True)
    ours = set(registry.names(kind, ours=True))
    assert [str(p) for p in registry.problems([kind]) if p.name in ours] == []
    assert ours <= set(registry.usable(kind))


def test_names_are_listed_without_importing_what_bears_them(folder: Path) -> None:
    (folder / "explodes.py").write_text("raise RuntimeError('imported')\n")
    (folder / "_helper.py").write_text("raise RuntimeError('imported')\n")
    assert "explodes" in registry.names("quantize")
    assert "_helper" not in registry.names("quantize")
    assert "testbed.chain.quantize.explodes" not in sys.modules


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (QUANTIZER.format(name="One") + QUANTIZER.format(name="Two"), r"2 classes \(One, Two\)"),
        ("import no_such_package_at_all\n", "ModuleNotFoundError: No module named 'no_such_package_at_all'"),
        ("def broken(:\n", "SyntaxError: "),
        ("raise SystemExit(3)\n", "SystemExit: 3"),
        ("x = 1\n", "no quantizer in it, i.e. no concrete subclass of testbed.core.stages.Quantizer"),
        (
            "from testbed.core.stages import Quantizer\n\nclass Half(Quantizer):\n    def lead(self, f, r): ...\n",
            "Half lacks eavesdrop, finish, follow",
        ),
    ],
)
def test_a_broken_file_is_named_and_takes_nothing_else_down(folder: Path, text: str, cause: str) -> None:
    (folder / "mine.py").write_text(text)
    problems = registry.problems(["quantize"])
    assert [p.name for p in problems] == ["mine"]
    assert "\n" not in str(problems[0])
    with pytest.raises(InputError, match=cause) as told:
        registry.make_stage("quantize", "mine", {})
    assert str(folder / "mine.py") in str(told.value)
    assert str(told.value).startswith("quantizer 'mine' cannot be used: ")
    assert registry.make_stage("quantize", "scalar", {"bits": 1}).options.bits == 1
    assert "mine" not in registry.usable("quantize")


def test_the_list_names_what_is_broken_on_stderr_and_goes_on(folder: Path) -> None:
    (folder / "mine.py").write_text("import no_such_package_at_all\n")
    (folder / "good.py").write_text(QUANTIZER.format(name="Good"))
    for arguments in (["list"], ["list", "quantize"]):
        done = CliRunner().invoke(cli.app, arguments)
        assert done.exit_code == 0, done.output
        assert "good" in done.stdout
        assert "mine" not in done.stdout
        told = [line for line in done.stderr.splitlines() if "mine" in line]
        assert len(told) == 1
        assert "no_such_package_at_all" in told[0]
        assert str(folder / "mine.py") in told[0]


def test_what_is_installed_stands_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "[testbed.quantize]\ntheirs = their_quantizer:Theirs\nwhole = their_quantizer\n"
    install(tmp_path, monkeypatch, "Their_Package", lines, their_quantizer=QUANTIZER.format(name="Theirs"))
    assert {"theirs", "whole", "scalar"} <= set(registry.names("quantize"))
    assert not {"theirs", "whole"} & set(registry.names("quantize", ours=True))
    assert registry.places("quantize")["theirs"][0].distribution == "their-package"
    for name in ("theirs", "whole"):
        assert type(registry.make_stage("quantize", name, {})).__name__ == "Theirs"
    assert registry.problems(["quantize"]) == []


@pytest.mark.parametrize(
    ("value", "cause"),
    [
        ("their_quantizer:Nobody", "AttributeError"),
        ("their_package_that_is_gone:Theirs", "ModuleNotFoundError"),
        ("their_quantizer:NUMBER", "no quantizer: 7 is no subclass"),
    ],
)
def test_a_broken_entry_point_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, cause: str) -> None:
    text = QUANTIZER.format(name="Theirs") + "\nNUMBER = 7\n"
    install(tmp_path, monkeypatch, "theirs", f"[testbed.quantize]\nbad = {value}\n", their_quantizer=text)
    with pytest.raises(InputError, match=cause) as told:
        registry.find("quantize", "bad")
    assert f"entry point bad = {value} of theirs" in str(told.value)
    assert registry.find("quantize", "scalar").__name__ == "Scalar"
    sys.modules.pop("their_quantizer", None)


def test_a_name_that_is_used_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = QUANTIZER.format(name="Theirs")
    install(tmp_path / "one", monkeypatch, "one", "[testbed.quantize]\nscalar = of_one:Theirs\n", of_one=text)
    install(tmp_path / "two", monkeypatch, "two", "[testbed.radios]\nsim = of_two:Theirs\n", of_two=text)
    for kind, name, others in (("quantize", "scalar", "kmeans"), ("radios", "sim", "pluto")):
        with pytest.raises(InputError, match="the name is given 2 times") as told:
            registry.find(kind, name)
        assert "of_" in str(told.value)
        assert "scalar.py" in str(told.value) or "ris-skg-testbed" in str(told.value)
        assert [p.name for p in registry.problems([kind])] == [name]
        assert registry.find(kind, others) is not None


def test_an_unknown_name_says_which_are_known() -> None:
    with pytest.raises(
        InputError, match=r"no quantizer is called 'scaler'; did you mean 'scalar'\?; accepted: .*kmeans"
    ):
        registry.find("quantize", "scaler")


@pytest.mark.parametrize("kind", [k for k in registry.KINDS if registry.KINDS[k].folder])
def test_every_kind_is_found_by_entry_point_too(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours under another name, as if a third party had written it."""
    name, (place,) = next(iter(registry.places(kind, ours=True).items()))
    group = registry.KINDS[kind].group or f"testbed.{kind}"
    install(tmp_path, monkeypatch, "theirs", f"[{group}]\nanother = {place.module}\n")
    assert registry.find(kind, "another") is registry.find(kind, name)


def test_options_are_listed_with_meaning_default_and_range() -> None:
    done = CliRunner().invoke(cli.app, ["list", "quantize", "scalar"])
    assert done.exit_code == 0
    assert "  bits = 2; accepted: whole numbers from 1 to 4\n      Bits of a feature.\n" in done.stdout
    done = CliRunner().invoke(cli.app, ["list", "radios", "pluto"])
    assert "  timeout_s = 3.0; accepted: numbers above 0\n      Longest time of one exchange" in done.stdout
    done = CliRunner().invoke(cli.app, ["list", "policy", "sweep"])
    assert "  codebook must be given; accepted: lists of text\n" in done.stdout
