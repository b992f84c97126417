"""Commands that list what is installed and measure how fast it is."""

from __future__ import annotations

import json
from typing import Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import JsonOption, app
from testbed.cli.terminal import print_json, say
from testbed.config import describe
from testbed.core import logs
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError


@app.command()
def bench(
    name: Annotated[Optional[str], typer.Argument(help="Name of one benchmark; default: all.")] = None,  # noqa: UP045
    as_json: JsonOption = False,
) -> None:
    """Measure performance, each figure compared with a peer measured in the same run.

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
def list_named(
    kind: Annotated[Optional[str], typer.Argument(help="Kind to list: quantize, radios …")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Argument(help="Name of one thing of that kind.")] = None,  # noqa: UP045
) -> None:
    """List the bundled files, stages, drivers, checks and studies; with a KIND, also the options of each.

    Anything that was found and cannot be used is named on standard error, one line each.
    Example: testbed list quantize scalar
    """
    from testbed.core import registry

    if kind is None:
        for title, files in (("experiments", Experiment), ("labs", Lab)):
            print(f"{title}: {', '.join(config.bundled(files))}")
        broken = registry.problems()
        for key in registry.KINDS:
            lost = {p.name for p in broken if p.kind == key}
            print(f"{key}: {', '.join(n for n in registry.names(key) if n not in lost)}")
    elif kind not in registry.KINDS:
        raise InputError(f"no kind is called {kind!r}; accepted: {', '.join(registry.KINDS)}")
    elif name is not None:
        broken = []
        _describe(kind, name, registry.find(kind, name))
    else:
        broken = registry.problems([kind])
        for key, thing in registry.usable(kind).items():
            _describe(kind, key, thing)
    for problem in broken:
        say(f"testbed: {problem}")


def _describe(kind: str, name: str, thing: Any) -> None:
    """Print what something is, where it is, and its options with default, range and meaning."""
    from testbed.core import registry

    print(f"{kind} {name} ({registry.places(kind)[name][0]})\n    {describe.summary(thing)}")
    limits = getattr(thing, "limits", None)
    for key in ("carrier_hz", "sample_rate_hz", "tx_gain_db", "rx_gain_db") if limits is not None else ():
        if (limit := getattr(limits, key)) is not None:
            print(f"  range of every device: {key} from {limit[0]:g} to {limit[1]:g}")
    struct = describe.options_type(thing)
    for option in describe.fields(struct) if struct is not None else ():
        given = "must be given" if option.default is None else f"= {option.default}"
        print(f"  {option.name} {given}{f'; accepted: {option.accepted}' if option.accepted else ''}")
        if option.meaning:
            print(f"      {option.meaning}")
