"""Testbed controller for physical-layer secret key generation with reconfigurable intelligent surfaces.

In Python:

    import testbed

    outcome = testbed.run("static_room", rounds=200)      # as `testbed run`; also in_process=True
    data = testbed.open(outcome.folder)                   # an xarray Dataset (extra `notebooks`)
    summary = testbed.replay(outcome.folder)              # as `testbed replay`; a dict like summary.json

Each of them is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

try:
    from testbed._version import commit_id as __commit__
    from testbed._version import version as __version__
except ImportError:  # the sources were copied, but neither built nor installed
    __version__, __commit__ = "0+unknown", None
if __commit__ is None and "+g" in __version__:  # built without the repository, as in a container: the version was given
    __commit__ = __version__.partition("+")[2].split(".")[0]

__all__ = ["__commit__", "__version__", "open", "replay", "run"]

# No import statement, not even for type checkers: the rooms below import this module, and must not depend on others.
_LAZY = {"open": ("testbed.records.dataset", "open_run"), "run": ("testbed.lab.run", "run")}


def __getattr__(name: str) -> Any:
    if name == "replay":  # a package that can be called, see `testbed.replay`
        return importlib.import_module("testbed.replay")
    if name in _LAZY:
        module, attribute = _LAZY[name]
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module 'testbed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
