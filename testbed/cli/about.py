"""Commands that say what there is, and how fast it is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import JsonOption, app
from testbed.cli.terminal import print_json
from testbed.core import logs
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError

if TYPE_CHECKING:
    pass


@app.command()
def bench(
    name: Annotated[Optional[str], typer.Argument(help="One benchmark; all without it.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
) -> None:
    """Measure performance, each figure beside a peer measured in the same run.

    Example: testbed bench cascade --json
    """
    logs.configure(False)
    from testbed import benchmarks as benches

    rows = benches.run(name)
    if as_json:
        print_json(rows)
        return
    for row in rows:
        peer = f"  {row.peer}: {row.peer_s:.6g} s, ratio {row.ratio:.2f}" if row.peer else ""
        print(f"{row.name}: {row.ours_s:.6g} s{peer}\n    {row.note}")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(help="experiment or lab.")],
) -> None:
    """Print the JSON Schema of a file kind, for editors that complete TOML.

    Example: testbed schema experiment > experiment.schema.json
    """
    kinds: dict[str, Any] = {"experiment": Experiment, "lab": Lab}
    if kind not in kinds:
        raise InputError(f"no file kind {kind!r}; accepted: experiment, lab")
    print(json.dumps(config.json_schema(kinds[kind]), indent=2))


@app.command("list")
def list_bundled() -> None:
    """List the bundled experiments and labs, and the stages a chain can be made of.

    Example: testbed list
    """
    from testbed import papers
    from testbed.core import registry

    for title, kind in (("experiments", Experiment), ("labs", Lab)):
        print(f"{title}: {', '.join(config.bundled(kind))}")
    for stage in registry.STAGES:
        print(f"{stage}: {', '.join(registry.stage_names(stage))}")
    print(f"studies: {', '.join(papers.names())}")
