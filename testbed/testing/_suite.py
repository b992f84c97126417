"""The base of all suites: a suite is a class of `test_` methods, run by pytest or by one call.

Nothing here needs pytest, so that a third party's package can test its driver with any tool.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import SkipTest

from testbed.core.errors import InputError


class Suite:
    """The sentences of a contract, one method each.

    With pytest: subclass it as `class TestMine(QuantizerSuite)` and give it `make = Mine`, or a method `make`.
    Elsewhere: `check_quantizer(Mine)`.
    """

    contract: ClassVar[str] = ""
    """Name of the contract, for messages."""
    make: Callable[..., Any]
    """Returns a fresh object under test, as the suite's docstring says."""

    def fresh(self) -> Any:
        """Return a fresh object under test."""
        return self.make()

    @classmethod
    def sentences(cls) -> list[str]:
        """Return the names of the methods that `check` runs, in the order of their definition."""
        found: dict[str, None] = {}
        for base in reversed(cls.__mro__):
            found |= dict.fromkeys(name for name in vars(base) if name.startswith("test_"))
        return list(found)


def check(suite: type[Suite], make: Callable[..., Any]) -> None:
    """Run a suite over what `make` returns; raises AssertionError naming every sentence that does not hold."""
    broken = []
    for name in suite.sentences():
        one = suite()
        one.make = make
        try:
            getattr(one, name)()
        except SkipTest:
            continue
        except Exception as exc:
            text = " ".join(str(exc).split())[:300]
            broken.append(f"{name.removeprefix('test_').replace('_', ' ')} ({type(exc).__name__}: {text})")
    if broken:
        total = len(suite.sentences())
        raise AssertionError(
            f"{len(broken)} of {total} sentences of the {suite.contract} contract do not hold: " + "; ".join(broken)
        )


def skip(why: str) -> None:
    """Leave out a sentence that does not apply to the object under test."""
    raise SkipTest(why)


@contextmanager
def refused(kind: type[BaseException] | tuple[type[BaseException], ...], words: str = "") -> Iterator[None]:
    """Demand that the block raises `kind`, with a message that matches `words` (a regular expression)."""
    try:
        yield
    except kind as exc:
        assert re.search(words, str(exc)), f"{str(exc)!r} does not say {words!r}"
        return
    except Exception as exc:
        raise AssertionError(f"{type(exc).__name__} was raised ({exc}), accepted: {_named(kind)}") from exc
    raise AssertionError(f"nothing was raised, accepted: {_named(kind)}")


def _named(kind: Any) -> str:
    return " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))


class OptionsSuite(Suite):
    """The sentences of everything that is built from options."""

    def test_unknown_options_are_refused_by_name(self) -> None:
        cls = type(self.fresh())
        with refused(InputError, "unknown key 'no_such_option'.*accepted"):
            cls(no_such_option=1)

    def test_every_option_has_a_default_or_is_asked_for_and_a_meaning(self) -> None:
        from testbed.config import describe

        made = self.fresh()
        kind = describe.options_type(type(made))
        assert kind is not None, "options_type is no struct"
        for option in describe.fields(kind):
            assert option.meaning, f"option {option.name!r} has no docstring"
            assert hasattr(made.options, option.name)
