"""Channels from IQ recordings (SigMF) of a known waveform: every annotated part, or every period, is one probe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import field

from testbed.core import registry
from testbed.core.config import Options, Positive, Table
from testbed.core.errors import InputError, ProbeRejected
from testbed.core.types import C64, F64, I64, IqBlock
from testbed.core.whole import read_whole, require_regular
from testbed.replay.arrays import check_bytes

_TYPES = {
    "cf32_le": ("<f4", 1.0), "cf64_le": ("<f8", 1.0), "cf32_be": (">f4", 1.0), "ci16_le": ("<i2", 2.0**15),
    "ci16_be": (">i2", 2.0**15), "ci32_le": ("<i4", 2.0**31), "ci8": ("i1", 2.0**7),
}  # fmt: skip
"""SigMF datatype → numpy type and full scale."""
MAX_FILES = 1_000_000


class Waveform(Table):
    """The waveform that was sent, for IQ recordings."""

    probing: str = "ofdm"
    probing_options: Options = field(default_factory=dict)
    estimator: str = "least_squares"
    estimator_options: Options = field(default_factory=dict)
    period_s: Positive | None = None
    """Time from one frame to the next in a continuous recording; without it, the recording's annotations mark the
    frames, or each file is one frame."""


@dataclass(frozen=True, slots=True)
class Channels:
    """The channels that were estimated from a set of recordings."""

    h: C64
    """(probe, rx, tx, subcarrier), NaN where no frame was found."""
    index: I64
    """(probe,) the first number in the file's name if each file is one probe, else the position in the recording."""
    time_s: F64
    """(probe,) time of the first sample of the probe's part, from the capture's UTC time if it has one."""
    subcarrier_hz: F64


def read(path: Path, waveform: Waveform) -> Channels:
    """Estimate the channel of every frame; `path` is one recording, or a pattern for several; each has 1 frame or more.

    Raises InputError for files that are no SigMF, for differing sample rates in a set, or where no frame is found.
    """
    metas = _metas(path)
    try:
        sounder = registry.make_stage("probing", waveform.probing, waveform.probing_options)
        estimator = registry.make_stage("csi", waveform.estimator, waveform.estimator_options)
    except InputError as exc:
        raise InputError(f"table [waveform]: {exc}") from exc
    found: list[tuple[int, float, C64 | None]] = []
    rate_hz, frame = 0.0, None
    for meta in metas:
        head, samples, first_s, marks = _recording(meta)
        if frame is None or head != rate_hz:
            if frame is not None:
                raise InputError(
                    f"{meta}: {head:g} samples/s, the files before have {rate_hz:g}; accepted: equal rates"
                )
            rate_hz = head
            try:
                frame = sounder.frame(rate_hz)
            except ValueError as exc:
                raise InputError(f"{meta}: {rate_hz:g} samples/s: {exc}") from exc
        stretches = marks or _periods(samples.shape[1], waveform.period_s, rate_hz)
        single = len(stretches) == 1 and len(metas) > 1
        for start, count in stretches:
            time_s = first_s + start / rate_hz
            block = IqBlock(np.ascontiguousarray(samples[:, start : start + count]), rate_hz, time_s)
            try:
                h = estimator.estimate(block, frame).h
            except ProbeRejected:
                h = None
            found.append((_number(meta) if single else len(found), time_s, h))
    known = [h for _, _, h in found if h is not None]
    if not known or frame is None:
        raise InputError(
            f"{path}: no frame of the [waveform] in {len(found)} parts; accepted: the waveform that was sent"
        )
    blank = np.full(known[0].shape, np.nan, dtype=np.complex64)
    return Channels(
        h=np.stack([blank if h is None else h for _, _, h in found]),
        index=np.array([number for number, _, _ in found], dtype=np.int64),
        time_s=np.array([time_s for _, time_s, _ in found]),
        subcarrier_hz=frame.subcarrier_hz,
    )


def _metas(path: Path) -> list[Path]:
    name = path.name.removesuffix(".sigmf-data").removesuffix(".sigmf-meta")
    found = sorted(path.parent.glob(name + ".sigmf-meta")) if path.parent.is_dir() else []
    if not found or len(found) > MAX_FILES:
        raise InputError(f"{path}: {len(found)} recordings; accepted: a .sigmf-meta file, or a pattern that finds some")
    return found


def _number(meta: Path) -> int:
    digits = re.search(r"\d{1,15}", meta.name)
    return int(digits[0]) if digits else 0


def _periods(n: int, period_s: float | None, rate_hz: float) -> list[tuple[int, int]]:
    if period_s is None:
        return [(0, n)]
    step = max(1, round(period_s * rate_hz))
    return [(start, min(step, n - start)) for start in range(0, n, step)]


def _recording(meta: Path) -> tuple[float, C64, float, list[tuple[int, int]]]:
    """Return sample rate, samples (antenna, sample), time of the first one and annotated stretches."""
    data = meta.with_name(meta.name.removesuffix(".sigmf-meta") + ".sigmf-data")
    try:
        content = msgspec.json.decode(read_whole(meta, 1 << 24))
        head = content["global"]
        rate_hz, channels = float(head["core:sample_rate"]), int(head.get("core:num_channels", 1))
        if head["core:datatype"] not in _TYPES:
            raise InputError(f"{meta}: core:datatype {head['core:datatype']!r}; accepted: {', '.join(_TYPES)}")
        if not rate_hz > 0 or not 1 <= channels <= 64:
            raise InputError(f"{meta}: {rate_hz:g} samples/s, {channels} channels; accepted: above 0, 1 to 64")
        kind, scale = _TYPES[head["core:datatype"]]
        require_regular(data)
        check_bytes(data, "samples", data.stat().st_size * 8 // np.dtype(kind).itemsize)
        parts = np.fromfile(data, dtype=kind)
        parts = parts[: parts.size - parts.size % (2 * channels)].astype(np.float32).reshape(-1, channels, 2) / scale
        samples = (parts[..., 0] + 1j * parts[..., 1]).T.astype(np.complex64)
        captures = content.get("captures") or [{}]
        marks = [(a["core:sample_start"], a["core:sample_count"]) for a in content.get("annotations", [])]
        if any(not 0 <= start < start + count <= samples.shape[1] for start, count in marks):
            raise InputError(f"{meta}: an annotation lies outside the {samples.shape[1]} samples")
        return rate_hz, samples, _first_s(captures[0]), sorted(marks)
    except OSError as exc:
        raise InputError(f"{exc.filename}: cannot be read: {exc.strerror}") from exc
    except (msgspec.MsgspecError, KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError) as exc:
        raise InputError(f"{meta}: not a SigMF recording: {type(exc).__name__}: {exc}") from exc


def _first_s(capture: dict[str, Any]) -> float:
    """Return the time of a capture's first sample: its UTC time, else the device's clock where it is given."""
    if "core:datetime" in capture:
        return datetime.fromisoformat(capture["core:datetime"]).timestamp()
    return float(capture.get("ris_skg:device_time_s", 0.0))
