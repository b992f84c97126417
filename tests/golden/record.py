"""What runs and replays compute, recorded once and compared ever after: a check that a rebuild changes nothing.

    TESTBED_DATASETS=… python tests/golden/record.py                      # everything; prints what differs
    python tests/golden/record.py --only mobile_room:1 --only static_room # no measured data needed for these
    TESTBED_DATASETS=… python tests/golden/record.py --write              # records anew, where results are to change

Everything goes through public commands (`testbed run`, `keys`, `replay`) and the files they write, so that modules may
move freely. Bits are kept as digests: sha256 over one byte of 0 or 1 a raw bit, over the packed bytes of a key.
Exit status: 0 where all is as recorded, 1 where something differs, 2 for bad input.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RECORDED = HERE / "recorded.json"

# An item is NAME:SEED. Runs: name → (experiment, lab, seeds); the round counts are the files' own.
RUNS = {
    "soft_walk": ("soft_walk", "sim", (1, 2, 3)),
    "static_room": ("static_room", "sim", (1, 2, 3)),
    "mobile_room": ("mobile_room", "sim", (1, 2, 3)),
    "mimo_walk": ("mimo_walk", "sim_mimo", (1, 2, 3)),
    "small_room": (str(HERE / "small_room.toml"), "sim", (1, 2)),
}
REPLAYS = {"rfm12b_rssi": (1,), "openris_vna": (1,)}
CUTS = {"rfm12b_rssi": "static"}
"""Of data sets that take too long as a whole: the other cut has 14,000 probes a block and an Eve of 712,000 rounds."""
SEEDS = {**{name: seeds for name, (_, _, seeds) in RUNS.items()}, **REPLAYS}
ITEMS = [f"{name}:{seed}" for name, seeds in SEEDS.items() for seed in seeds]

# Sums depend on the width of the processor's vector units and on the kernels of its linear algebra. Both are held down
# to what every x86-64 machine of the last ten years has, so that a record of one machine is good on another.
STEADY = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
ENVIRONMENT = """
import json, platform, numpy, scipy
found = numpy.show_config(mode="dicts")["SIMD Extensions"]["found"]
print(json.dumps({
    "machine": platform.machine(), "numpy": numpy.__version__, "scipy": scipy.__version__, "cpu_features": found
}))
"""


class BadInput(Exception):
    """One line: what is wrong and what is accepted."""


# ---------------------------------------------------------------- measuring


def measure(item: str, work: Path) -> dict[str, Any]:
    """Return what one item gives now; `work` is an empty folder for its run, keys and logs.

    Raises BadInput where the item's data set is missing, RuntimeError with the command's last words where it fails.
    """
    name, seed = item.split(":")
    if name in RUNS:
        experiment, lab, _ = RUNS[name]
        return _measure_run(experiment, lab, seed, work)
    return _measure_replay(data_set(name), seed, work)


def data_set(name: str) -> Path:
    """Return the folder of a measured data set; raises BadInput where there is none."""
    root = os.environ.get("TESTBED_DATASETS")
    if root is None:
        raise BadInput("TESTBED_DATASETS is not set: docs/datasets.md says where to get the measured data sets")
    if not (Path(root) / name).is_dir():
        raise BadInput(f"TESTBED_DATASETS = {root} holds no {name}: docs/datasets.md says where to get it")
    return Path(root).resolve() / name


def _measure_run(experiment: str, lab: str, seed: str, work: Path) -> dict[str, Any]:
    summary = _testbed(work, "run", experiment, "--lab", lab, "--seed", seed, "--out", str(work / "runs"), "--json")
    (folder,) = (work / "runs").iterdir()
    told = json.loads((folder / "run.json").read_bytes())
    csi, bits = _digests(folder / "rounds.h5")
    keys = _keys(work / "state")
    return {
        **_counts(summary),
        "links_rejected": summary.get("links_rejected"),
        "csi_sha256": csi,
        "blocks": [
            {
                "block": block["block"],
                "raw_sha256": bits.get(block["block"], {}),
                "leaked_bits": {side: report["leaked_bits"] for side, report in block["agree"].items()},
                "key_bits": {side: report["key_bits"] for side, report in block["key"].items()},
                "key_sha256": keys.get(block["block"], {}),
            }
            for block in told["blocks"]
        ],
    }


def _measure_replay(source: Path, seed: str, work: Path) -> dict[str, Any]:
    cut = ("--cut", CUTS[source.name]) if source.name in CUTS else ()
    summary = _testbed(work, "replay", str(source), *cut, "--seed", seed, "--json")
    cuts = {cut["cut"]: {**_counts(cut), "blocks": cut["block_digests"]} for cut in summary["cuts"]}
    return {"cut": summary["cut"], "cuts": cuts}


def _counts(summary: dict[str, Any]) -> dict[str, Any]:
    names = ("rounds", "pairs_kept", "pairs_rejected", "raw_bits", "key_bits", "keys_verified", "keys_mismatched")
    return {**{name: summary[name] for name in names}, "leaked_bits": summary["reconciliation"]["leaked_bits"]}


def _testbed(work: Path, *arguments: str) -> Any:
    """Run a command and return the JSON it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "testbed", *arguments],
        cwd=work,
        env=_environment() | {"TESTBED_STATE": str(work / "state")},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word on standard error"])[-1]
        raise RuntimeError(f"testbed {' '.join(arguments)}: exit status {done.returncode}: {last}")
    return json.loads(done.stdout)


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {**os.environ, **STEADY, "PYTHONPATH": path}


def _digests(path: Path) -> tuple[dict[str, str], dict[int, dict[str, str]]]:
    """Return digests of every link's CSI and, by block, of every side's raw bits (Eve's: her guess of them)."""
    import h5py

    with h5py.File(path) as f:
        csi = {link: _sha256(group["csi"][...].tobytes()) for link, group in f["links"].items() if "csi" in group}
        bits = {
            int(block): {
                side: _sha256(kinds[kind][...].tobytes())
                for side, kinds in sides.items()
                for kind in ("raw", "guess")
                if kind in kinds
            }
            for block, sides in f["bits"].items()
        }
    return csi, bits


def _keys(state: Path) -> dict[int, dict[str, str]]:
    """Return digests of the keys by block and node; those of rehearsals are not listed by `testbed keys`."""
    found: dict[int, dict[str, str]] = {}
    for path in sorted(state.glob("*/*/rehearsals/*/block-*.key")):
        content = bytes.fromhex(json.loads(path.read_bytes())["hex"])
        found.setdefault(int(path.stem.split("-")[1]), {})[path.parents[2].name] = _sha256(content)
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def environment() -> dict[str, Any]:
    """Return what a float's last bit may depend on, as the commands above see it."""
    text = subprocess.run(
        [sys.executable, "-c", ENVIRONMENT], env=_environment(), capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(text.stdout)
    return found


# ---------------------------------------------------------------- comparing


def recorded() -> dict[str, Any]:
    """Return the committed record: `environment` and, under `items`, what each item gave."""
    found: dict[str, Any] = json.loads(RECORDED.read_text())
    return found


def differences(item: str, before: Any, now: Any) -> list[str]:
    """Return one line for each value that differs, named by its place."""
    old, new = dict(_leaves(before)), dict(_leaves(now))
    return [
        f"{item}: {place}: recorded {_shown(old, place)}, now {_shown(new, place)}"
        for place in [*old, *(place for place in new if place not in old)]
        if old.get(place, _NOTHING) != new.get(place, _NOTHING)
    ]


_NOTHING = object()


def _shown(values: dict[str, Any], place: str) -> str:
    value = values.get(place, _NOTHING)
    if value is _NOTHING:
        return "nothing"
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of everything that is not a table or a list; an empty one counts as a value."""
    if not isinstance(value, (dict, list)) or not value:
        yield place, value
        return
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in parts:
        yield from _leaves(part, f"{place}.{key}" if place else str(key))


# ---------------------------------------------------------------- the command


def chosen(only: list[str]) -> list[str]:
    """Return the items that NAME or NAME:SEED selects; raises BadInput for what selects none."""
    for wanted in only:
        if wanted not in SEEDS and wanted not in ITEMS:
            raise BadInput(f"--only {wanted}: no such item; accepted: {', '.join(SEEDS)}, each also as NAME:SEED")
    return [item for item in ITEMS if not only or item in only or item.split(":")[0] in only]


def measured(items: list[str], jobs: int, tell: Callable[[str, dict[str, Any], float], None]) -> dict[str, Any]:
    """Measure `items`, `jobs` at a time; `tell` gets each one, what it gave and its seconds, in the order asked for."""

    def timed(item: str) -> tuple[dict[str, Any], float]:
        begun = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="golden-") as work:
            return measure(item, Path(work)), time.monotonic() - begun

    found = {}
    with ThreadPoolExecutor(jobs) as pool:
        futures = {item: pool.submit(timed, item) for item in items}
        try:
            for item, future in futures.items():
                found[item], seconds = future.result()
                tell(item, found[item], seconds)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return found


def write(items: dict[str, Any]) -> None:
    """Record `items`, keeping the others as they are."""
    before = recorded()["items"] if RECORDED.exists() else {}
    kept = {item: items.get(item, before.get(item)) for item in ITEMS if item in items or item in before}
    RECORDED.write_text(json.dumps({"environment": environment(), "items": kept}, indent=1) + "\n")


def compare(items: list[str], jobs: int) -> int:
    """Print what differs from the record; return the number of items that do."""
    record, here = recorded(), environment()
    if here != record["environment"]:
        print(f"recorded with {record['environment']}, this is {here}: that alone may differ", file=sys.stderr)
    differ = []

    def tell(item: str, now: dict[str, Any], seconds: float) -> None:
        lines = differences(item, record["items"].get(item), now)
        print("\n".join(lines) if lines else f"{item}: as recorded ({seconds:.0f} s)", flush=True)
        if lines:
            differ.append(item)

    measured(items, jobs, tell)
    print(f"{len(items) - len(differ)} of {len(items)} as recorded" + (f"; not: {', '.join(differ)}" if differ else ""))
    return len(differ)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Compare what runs and replays compute with tests/golden/recorded.json.",
        epilog="Example: python tests/golden/record.py --only mobile_room:1 --only static_room",
    )
    parser.add_argument("--only", action="append", default=[], metavar="NAME[:SEED]", help="may be given several times")
    parser.add_argument("--jobs", type=int, default=2, help="items at a time (default 2)")
    parser.add_argument("--write", action="store_true", help="record what is measured instead of comparing")
    asked = parser.parse_args()
    try:
        items = chosen(asked.only)
        if asked.jobs < 1:
            raise BadInput(f"--jobs {asked.jobs}: accepted: 1 or more")
        for name in REPLAYS:
            if any(item.startswith(f"{name}:") for item in items):
                data_set(name)
    except BadInput as exc:
        print(f"record.py: {exc}", file=sys.stderr)
        return 2
    if asked.write:
        write(measured(items, asked.jobs, lambda item, _, seconds: print(f"{item}: {seconds:.0f} s", flush=True)))
        return 0
    return 1 if compare(items, asked.jobs) else 0


if __name__ == "__main__":
    sys.exit(main())
