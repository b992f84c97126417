"""Commands of the papers: studies and the training of policies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from testbed import config
from testbed.cli.app import JsonOption, QuietOption, app
from testbed.cli.terminal import Steps, aside, print_json, say
from testbed.core import logs
from testbed.core.errors import InputError

if TYPE_CHECKING:
    pass


@app.command()
def study(
    name: Annotated[str, typer.Argument(help="Name of the study; `testbed list` shows all.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="Compute fewer points for the same claims, in under a minute.")
    ] = False,
    out: Annotated[Optional[Path], typer.Option(help="Default: studies/NAME.", metavar="DIR")] = None,  # noqa: UP045
    scheduler: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Dask scheduler on whose workers the study runs.", metavar="ADDRESS"),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Reproduce a paper's figures; write them and results.json, which says of each claim whether it holds.

    Example: testbed study pkgnet --quick
    """
    logs.configure(False)
    from testbed import papers

    folder = out or Path("studies") / name
    results = papers.run(name, folder, quick, scheduler, aside(quiet))
    if as_json:
        print_json(results)
    else:
        for row in results["claims"]:
            paper = "" if row["paper"] is None else f" (paper: {_rounded(row['paper'])})"
            verdict = "holds        " if row["holds"] else "DOES NOT HOLD"
            print(f"{verdict} {row['claim']}{paper}: {_rounded(row['measured'])}")
        print(f"{results['seconds']:.0f} s; figures and results.json: {folder}")
    broken = [row["claim"] for row in results["claims"] if row["must_hold"] and not row["holds"]]
    if broken:
        say(f"testbed: study {name}: these claims about our own code do not hold: {'; '.join(broken)}")
        raise typer.Exit(1)


def _rounded(value: Any) -> str:
    """Return a claim's plain value for people: numbers to four digits, in lists and tables too."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return f"[{', '.join(map(_rounded, value))}]"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {_rounded(v)}" for k, v in value.items())
    return str(value)


@app.command()
def train(
    algorithm: Annotated[str, typer.Argument(help="direct, sac, td3 or ppo.")],
    out: Annotated[Path, typer.Option(help="Checkpoint to write; its card (.json) is written beside it.")],
    channels: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Experiment whose scene gives the channels, or a .npz file with h, g and optionally fred. "
            "Default: AR(1) model.",
            metavar="EXPERIMENT|FILE",
        ),
    ] = None,
    step_s: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Time between two steps of an experiment's channels; default: its interval between rounds."),
    ] = None,
    updates: Annotated[Optional[int], typer.Option(min=1, help="Default: 600 for direct, 1200 for the others.")] = None,  # noqa: UP045
    view: Annotated[
        str,
        typer.Option(
            help="What the policy knows of Eve's channel: kalman, lstm, none, or full (no real node has that)."
        ),
    ] = "kalman",
    frame: Annotated[str, typer.Option(help="turned or antenna.")] = "turned",
    change: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set",
            help="Set one number of the setting, e.g. kappa_eve=0.9; may be repeated.",
            metavar="NAME=VALUE",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62)] = 1,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train beams against an eavesdropper (paper E) for [beams] policy = "agent" and compare them with closed forms.

    Example: testbed train direct --out beams.pt --set kappa_eve=0.9
    """
    logs.configure(False)
    changes: dict[str, float | int] = {}
    for item in change or []:
        name, _, value = item.partition("=")
        try:
            changes[name] = int(value) if name in ("n_antennas", "history") else float(value)
        except ValueError:
            raise InputError(f"--set {item}: not a name with a number; accepted: NAME=NUMBER") from None
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: no folder {out.parent}")
    if out.is_dir() or out.suffix == ".json":
        raise InputError(f"--out {out}: a folder, or the card's suffix .json; accepted: a file, as beams.pt")
    new = not out.exists()
    try:
        with out.open("ab"):  # checked before the training and not after it
            pass
    except OSError as exc:
        raise InputError(f"--out {out}: {exc.strerror}; accepted: a file that can be written") from exc
    if new:
        out.unlink()
    if step_s is not None and (channels is None or channels.endswith(".npz")):
        raise InputError("--step-s: accepted only with --channels EXPERIMENT; other channels have steps of their own")
    from testbed.agents import sources
    from testbed.agents import train as training

    series = None
    if channels is not None and channels.endswith(".npz"):
        series = sources.load(Path(channels))
    elif channels is not None:
        plan = config.load_experiment(channels)
        n_antennas = int(changes.get("n_antennas", 4))
        series = sources.from_experiment(plan, step_s, n_antennas)
    with Steps(quiet) as steps:
        steps.tell(0.0, f"{algorithm} is trained")
        found = training.run(
            training.Plan(algorithm, updates, seed, view, frame, series, changes), out,
            tell=lambda share: steps.tell(share, f"{algorithm} is trained"),
        )  # fmt: skip
    if as_json:
        print_json(found)
        return
    for name, reward in found["reward"].items():
        share = (
            "" if found["share"][name] is None else f", {found['share'][name]:.1%} of the gap from SVD to the oracle"
        )
        print(f"{name:18s} {reward:.3f} bits{share}")
    told = ", ".join(f"{k} = {found['setting'][k]:.4g}" for k in ("rho", "kappa_eve", "kappa_fred", "mu"))
    print(f"setting: {told}, {found['setting']['n_antennas']} antennas")
    print(f"{found['updates']} updates, {found['seconds']:.0f} s; held out: {found['draws']} draws; checkpoint: {out}")
