"""Two runs side by side: the figures of both summaries, and their ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NO_RATIO = ("raw disagreement Alice–Bob", "CSI correlation Alice–Bob")


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of both runs."""

    name: str
    unit: str
    ours: float | None
    baseline: float | None
    baseline_at_most: float | None = None
    """Where the baseline's value is not significantly above 0: its upper limit."""

    @property
    def ratio_at_least(self) -> float | None:
        """ours / `baseline_at_most`; None where the baseline's value is significantly above 0."""
        return None if not self.ours or not self.baseline_at_most else self.ours / self.baseline_at_most

    @property
    def ratio(self) -> float | None:
        """ours / baseline; None where either is missing, the baseline is 0, or this figure has no meaningful ratio."""
        if self.name in _NO_RATIO or self.ours is None or not self.baseline:
            return None
        return self.ours / self.baseline


def compare(summary: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[Row]:
    """Return the figures by which a run is compared with a baseline run, from both runs' summary.json."""
    fields = [
        ("key bits", "", lambda s: s.get("key_bits")),
        ("keys verified", "", lambda s: s.get("keys_verified")),
        ("key rate", "bit/s", lambda s: s.get("key_rate_bps")),
        ("raw rate", "bit/s", lambda s: s.get("raw_rate_bps")),
        ("raw disagreement Alice–Bob", "", lambda s: s.get("kdr_raw")),
        ("rate of agreed information", "bit/s", agreed_rate_bps),
        ("CSI correlation Alice–Bob", "", lambda s: s.get("csi_correlation_ab")),
    ]
    most = {"rate of agreed information": agreed_at_most_bps(baseline)}
    return [Row(name, unit, value(summary), value(baseline), most.get(name)) for name, unit, value in fields]


def several(summaries: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per figure: name, unit, `values` of every run, `ratios` to the first run's (None: no ratio)."""
    columns = [compare(summary, summaries[0]) for summary in summaries]
    return [
        {
            "name": own[0].name,
            "unit": own[0].unit,
            "values": [row.ours for row in own],
            "ratios": [None, *(row.ratio for row in own[1:])],
        }
        for own in zip(*columns, strict=True)
    ]


def agreed_rate_bps(summary: Mapping[str, Any]) -> float | None:
    """Return the raw rate times 1 − h(disagreement): what ideal reconciliation of independent bits would leave.

    It does not count quantized noise, half of whose bits differ: it is 0 if the disagreement is within 3 standard
    deviations of one half. None where either figure was not measured.
    """
    rate, p = summary.get("raw_rate_bps"), summary.get("kdr_raw")
    if rate is None or p is None:
        return None
    return 0.0 if abs(p - 0.5) < _spread(summary) else float(rate * (1.0 - _entropy(p)))


def agreed_at_most_bps(summary: Mapping[str, Any]) -> float | None:
    """Return the upper limit of `agreed_rate_bps` where it is 0: at a disagreement of one half less 3 deviations."""
    rate, p = summary.get("raw_rate_bps"), summary.get("kdr_raw")
    if not rate or p is None or abs(p - 0.5) >= (spread := _spread(summary)):
        return None
    return float(rate * (1.0 - _entropy(0.5 - min(0.5, abs(p - 0.5) + spread))))


def _spread(summary: Mapping[str, Any]) -> float:
    """Return 3 standard deviations of a disagreement of one half over the raw bits; 0 where these are not given."""
    n = summary.get("raw_bits")
    return 1.5 / math.sqrt(n) if n else 0.0


def _entropy(p: float) -> float:
    return 0.0 if p in (0.0, 1.0) else -p * math.log2(p) - (1.0 - p) * math.log2(1.0 - p)


def differences(ours: Any, baseline: Any, above: str = "") -> list[str]:
    """Return the dotted keys in which two configurations (plain values) differ, titles aside."""
    if isinstance(ours, dict) and isinstance(baseline, dict):
        out = []
        for key in sorted({*ours, *baseline} - {"title"}):
            out += differences(ours.get(key), baseline.get(key), f"{above}.{key}" if above else key)
        return out
    return [] if ours == baseline else [above]
