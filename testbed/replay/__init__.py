"""The key chain over measured channels. The package can be called: `testbed.replay(SOURCE, …)`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """Makes the package callable, because users expect the function `testbed.replay` and the package has that name."""

    def __call__(
        self,
        source: str | Path,
        *,
        map: str | Path | None = None,
        chain: str | Path | None = None,
        cut: str | None = None,
        seed: int | None = None,
        out: str | Path | None = None,
    ) -> dict[str, Any]:
        """Run the key chain over a recorded run, a measured data set or arrays of your own; return its summary.

        `map` and `chain` are the files of `testbed replay --map --chain` (docs/datasets.md); `cut`: only this set of
        links is replayed; `seed` replaces that of the chain's file or of the source; `out`: a new folder into which the
        replay is written in the form of a run, for `testbed report`, `testbed compare` and `testbed.open`.

        Example: `testbed.replay("measured.npz", map="map.toml")["csi_correlation_ab"]`

        Raises InputError, in one line, for a source, map or chain that cannot be used.
        """
        from testbed import config
        from testbed.replay.replay import replay

        plan = None if chain is None else config.load_chain(str(chain))
        map_file, folder = (None if x is None else Path(x) for x in (map, out))
        return replay(Path(source), plan, cut, seed=seed, map_file=map_file, out=folder)


sys.modules[__name__].__class__ = _Callable
