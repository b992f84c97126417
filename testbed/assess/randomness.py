"""Judges key bits by SP 800-22, with both criteria of the standard over many sequences, and reads bits from files.

The tests themselves are in `sp800_22`. A test for which the sequences are too short is listed with the reason.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from math import floor, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testbed.assess import sp800_22
from testbed.core import key_file
from testbed.core.errors import InputError
from testbed.core.types import F64, U8

ALPHA = 0.01
UNIFORM_FROM = 55
"""Number of sequences from which on section 4.2.2 requires uniform p-values."""
UNIFORM_ALPHA = 1e-4
FORMATS = ("auto", "raw", "text", "hex", "keys")
MAX_BYTES = 1 << 28
"""Largest size of a file of bits."""
DEFAULT_BITS = 1_000_000
"""Bits of a sequence by default; a shorter file is one sequence."""


def p_values(bits: U8) -> dict[str, F64]:
    """Return the p-values (sequence,) of every test that the standard allows at this length; none below 100 bits.

    Sequences of one length only: (sequence, bit) uint8. Statistics that no sequence has are left out.
    """
    return {name: p for name, p in sp800_22.run(bits).items() if not np.isnan(p).all()}


def combine(by_test: Mapping[str, NDArray[np.float64]], alpha: float = ALPHA) -> dict[str, dict[str, float]]:
    """Return {test: {pass_ratio, p_value}} over all sequences, in the form of summary.json.

    pass_ratio: share of p ≥ alpha. p_value: uniformity of the p-values (4.2.2) from 55 sequences on, as the standard
    requires; for fewer, Fisher's combination, which for one sequence is its own p-value. NaN counts as no p-value.
    """
    from scipy.special import gammaincc

    out = {}
    for test, values in by_test.items():
        p = values[~np.isnan(values)]
        if p.size == 0:
            continue
        if p.size >= UNIFORM_FROM:
            seen = np.histogram(p, bins=10, range=(0.0, 1.0))[0]
            chi2 = ((seen - p.size / 10.0) ** 2).sum() / (p.size / 10.0)
            value = gammaincc(4.5, chi2 / 2.0)
        else:
            value = gammaincc(p.size, -np.log(np.maximum(p, 1e-300)).sum())
        out[test] = {"pass_ratio": float(np.mean(p >= alpha)), "p_value": float(value)}
    return out


def least_pass_ratio(n_sequences: int, alpha: float = ALPHA) -> float:
    """Return the share of sequences that must pass, 4.2.1: three standard deviations below 1 − alpha."""
    return 1.0 - alpha - 3.0 * sqrt(alpha * (1.0 - alpha) / n_sequences)


def assess(bits: U8, alpha: float = ALPHA) -> dict[str, Any]:
    """Return what `testbed randomness --json` prints of sequences (sequence, bit), without their source.

    One row per statistic: p_value as in `combine`; `ok` by the standard's two criteria (one sequence: p ≥ alpha). A
    test that was not run has a row with nulls and the reason. The bits themselves are not in it.
    """
    n_sequences, n = bits.shape
    rows: list[dict[str, Any]] = []
    found = sp800_22.run(bits)
    combined = combine(found, alpha)
    for test, least in sp800_22.LEAST_BITS.items():
        if n < least:
            rows.append(_unmeasured(test, test, f"needs {least} bits a sequence"))
        for statistic in (s for s in found if sp800_22.family(s) == test):
            if statistic not in combined:
                rows.append(
                    _unmeasured(test, statistic, "the running sum of every sequence returns to zero too seldom")
                )
                continue
            counted = int(np.count_nonzero(~np.isnan(found[statistic])))
            ratio, p = combined[statistic]["pass_ratio"], combined[statistic]["p_value"]
            least_p = UNIFORM_ALPHA if counted >= UNIFORM_FROM else alpha
            passes = counted == 1 or ratio >= least_pass_ratio(counted, alpha)
            row = {"pass_ratio": ratio, "p_value": p, "sequences": counted, "ok": bool(passes and p >= least_p)}
            rows.append({"test": test, "statistic": statistic, **row, "reason": None})
    return {"sequences": n_sequences, "bits_per_sequence": n, "alpha": alpha, "tests": rows}


def _unmeasured(test: str, statistic: str, reason: str) -> dict[str, Any]:
    nothing = {"pass_ratio": None, "p_value": None, "sequences": 0, "ok": None}
    return {"test": test, "statistic": statistic, **nothing, "reason": reason}


def table(assessed: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return the lines of the printed table: a heading, then one line per test, with the worst of its statistics.

    If a test has many statistics, some fail by chance: the share that may fail is that of 4.2.1, and none may
    have p < 0.0001. One sequence alone has a p-value and no share of passes.
    """
    lines: list[tuple[str, ...]] = [("test", "passed", "pass ratio", "p-value", "", "")]
    for test in sp800_22.LEAST_BITS:
        rows = [row for row in assessed["tests"] if row["test"] == test]
        run = [row for row in rows if row["reason"] is None]
        if not run:
            # "a sequence" is left out here, because it is in the heading
            lines.append((test, "–", "–", "–", "", rows[0]["reason"].removesuffix(" a sequence")))
            continue
        worst = min(run, key=lambda row: (row["ok"], row["p_value"]))
        passed = sum(row["ok"] for row in run)
        ok = passed / len(run) >= least_pass_ratio(len(run), assessed["alpha"])
        ok = ok and (len(run) == 1 or worst["p_value"] >= UNIFORM_ALPHA)
        note = f"worst: {worst['statistic'].removeprefix(test + '_')}" if len(run) > 1 else ""
        if ok and passed < len(run):
            allowed = floor(len(run) * (1 - least_pass_ratio(len(run), assessed["alpha"])))
            note += f"; up to {allowed} failures are expected by chance"
        ratio = f"{worst['pass_ratio']:.4f}" if worst["sequences"] > 1 else "–"
        figures = (ratio, f"{worst['p_value']:.6f}", "ok" if ok else "not ok", note)
        lines.append((test, f"{passed}/{len(run)}", *figures))
    return lines


# ---------------------------------------------------------------- files


def load(path: Path, kind: str = "auto", bits_per_sequence: int | None = None) -> tuple[U8, str]:
    """Read sequences (sequence, bit) from a file or a folder of keys; return them and the format that was read.

    `kind` is one of FORMATS. "text" and "hex" ignore white space. "auto" reads a folder as keys, a file of only 0, 1
    and white space as text, one of only hexadecimal digits as hex, and any other as raw bytes, most significant bit
    first; it refuses other printable text, since mistyped bits would be read as bytes. Keys are a node's `*.key` files,
    in the folder or below it, concatenated; or one of them. What is left over after the last whole sequence is not
    used. Raises InputError for a bad path, format or content, never quoting it.
    """
    if kind not in FORMATS:
        raise InputError(f"--format {kind}: no such format; accepted: {', '.join(FORMATS)}")
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
    except OSError as exc:  # for example in a folder that this user may not read
        raise InputError(f"{path}: cannot be read: {exc.strerror}; accepted: one that this user may read") from exc
    if path.is_dir() and kind not in ("auto", "keys"):
        raise InputError(f"{path}: a folder, but --format {kind} reads a file")
    if path.is_dir() or kind == "keys" or (kind == "auto" and path.suffix == ".key"):
        bits, kind = _keys(path), "keys"
    else:
        bits, kind = _parse(path, kind)
    wanted = min(bits.size, DEFAULT_BITS) if bits_per_sequence is None else bits_per_sequence
    least = min(sp800_22.LEAST_BITS.values())
    if wanted < least or bits.size < wanted:
        asked = "" if bits_per_sequence is None else f", asked for {bits_per_sequence} a sequence"
        most = f"to {bits.size}" if bits.size >= least else "or more"
        raise InputError(f"{path}: {bits.size} bits ({kind}){asked}; accepted: {least} {most} bits a sequence")
    n_sequences = bits.size // wanted
    return bits[: n_sequences * wanted].reshape(n_sequences, wanted), kind


def _parse(path: Path, kind: str) -> tuple[U8, str]:
    with path.open("rb") as file:  # a device has no end
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB; accepted: less, the tests need some megabytes")
    content = content.removeprefix(codecs.BOM_UTF8)
    dense = b"".join(content.split())
    if kind == "auto":
        if dense and not dense.strip(b"01"):
            kind = "text"
        elif dense and not dense.strip(b"0123456789abcdefABCDEF"):
            kind = "hex"
        elif _is_text(content):
            raise InputError(
                f"{path}: printable text, but not of 0 and 1 (text) or hexadecimal digits (hex) alone; "
                "accepted: one of these, or --format raw to test the text's bytes"
            )
        else:
            kind = "raw"
    if kind == "raw":
        return np.unpackbits(np.frombuffer(content, np.uint8)), kind
    if kind == "text":
        if dense.strip(b"01"):
            raise InputError(f"{path}: other characters than 0, 1 and white space (--format text)")
        return np.frombuffer(dense, np.uint8) - np.uint8(ord("0")), kind
    try:
        return np.unpackbits(np.frombuffer(bytes.fromhex(dense.decode("ascii")), np.uint8)), kind
    except ValueError:
        raise InputError(f"{path}: not an even number of hexadecimal digits (--format hex)") from None


_TEXT_SHARE = 0.9
"""Share of printable bytes from which on a file counts as text; for random bytes it is 0.39."""
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\r\n"


def _is_text(content: bytes) -> bool:
    """Return whether a file is text, in any encoding, and so cannot be the bits of a key."""
    if not content:
        return False
    if len(content.translate(None, _PRINTABLE)) <= (1.0 - _TEXT_SHARE) * len(content):
        return True
    encoding = "utf-16" if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return all(c.isprintable() or c.isspace() for c in text)


def _keys(folder: Path) -> U8:
    parts = []
    paths = sorted(folder.rglob("*.key")) if folder.is_dir() else [folder]
    owners = {path.parents[2] for path in paths if len(path.parents) > 2}
    if len(owners) > 1:  # Alice's and Bob's keys are the same bits twice
        names = ", ".join(sorted(owner.name for owner in owners))
        raise InputError(f"{folder}: keys of several nodes ({names}); accepted: the folder of one")
    for path in paths:
        try:
            parts.append(key_file.read(path))
        except OSError as exc:
            raise InputError(f"{path}: cannot be read: {exc.strerror}") from exc
        except ValueError:
            raise InputError(f"{path}: not a key file as nodes write it") from None
    if not parts:
        raise InputError(f"{folder}: no *.key files in it or below")
    return np.concatenate(parts)
