"""The application that every file of commands adds its commands to, and the options that they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from testbed import __version__

if TYPE_CHECKING:
    pass


app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Physical-layer secret key generation with reconfigurable surfaces: probe, distil, account.",
)


LabOption = Annotated[str, typer.Option("--lab", help="Lab file, or the name of a bundled one.", metavar="LAB")]


JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output, nothing else.")]


VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Write a log to standard error.")]


QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results, failures and reasons only.")]


InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="Start no daemons: the same run in one process, in virtual time only.")
]


SupervisedOption = Annotated[
    bool, typer.Option("--supervised", hidden=True, help="Exit when standard input closes (set by `testbed run`).")
]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
