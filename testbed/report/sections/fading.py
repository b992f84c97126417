"""How the channel fades: autocorrelation over time, distribution of levels, power over delay."""

from __future__ import annotations

import numpy as np

from testbed.core.types import F64
from testbed.report.pictures import Pictures
from testbed.report.pieces import missing, picture
from testbed.report.section import Section
from testbed.report.view import View, no_csi

MAX_LAGS = 60
MIN_ROUNDS = 8
BINS = 40
_AT_LEAST_DB = -60.0


class Fading(Section):
    """Autocorrelation, distribution of levels, and delay profile of every link that was received."""

    order = 45
    short = "Fading"
    title = "How the channel fades"

    def html(self, v: View) -> str:
        if (why := no_csi(v)) is not None:
            return missing(why)
        links = {
            link.title: (name, link) for name, link in v.links.items()
            if link.magnitude_db is not None and len(link.rounds) >= MIN_ROUNDS
        }  # fmt: skip
        if not links:
            return missing(f"Too few rounds: at least {MIN_ROUNDS} are needed on a link.")
        links = dict(list(links.items())[:4])
        roles = {title: (link.role, link.dashed) for title, (_, link) in links.items()}
        levels = {title: link.magnitude_db for title, (_, link) in links.items() if link.magnitude_db is not None}
        parts = [_over_lag(v, levels, roles), _distribution(v.draw, levels, roles)]
        axis = v.run.subcarrier_hz
        profiles = {}
        for title, (name, _) in links.items():
            csi = v.run.links[name].csi
            found = None if csi is None or axis is None else delay_profile(csi[:, 0, 0], axis)
            if found is not None:
                profiles[title] = found
        parts.append(_profiles(v.draw, profiles, roles) if profiles else missing("Subcarriers are not evenly spaced."))
        return "".join(parts)


def _over_lag(v: View, levels: dict[str, F64], roles: dict[str, tuple[str, bool]]) -> str:
    table = v.run.rounds
    times = table.t0_s[np.isfinite(table.t0_s)]
    step_s = float(np.median(np.diff(times))) if times.size > 1 else None
    scale, label = (step_s, "lag, s") if step_s else (1.0, "lag, rounds")
    curves = {}
    for title, level in levels.items():
        r = autocorrelation(level)
        curves[title] = (np.arange(r.size, dtype=np.float64) * scale, r)
    n = min(len(level) for level in levels.values())
    svg = v.draw.lines(
        "autocorrelation", curves, roles, label, "autocorrelation", "Autocorrelation of the level over lag",
        band=1.96 / np.sqrt(n),
    )  # fmt: skip
    caption = (
        "Autocorrelation of the level in dB, as a mean over subcarriers. The band contains 95 % of the values of a "
        "subcarrier without autocorrelation. Where the curve is above it, successive rounds share information, and an "
        "Eve may use earlier rounds."
    )
    return "<h3>Autocorrelation</h3>" + picture(svg, caption)


def _distribution(draw: Pictures, levels: dict[str, F64], roles: dict[str, tuple[str, bool]]) -> str:
    every = np.concatenate([level[np.isfinite(level)] for level in levels.values()])
    low, high = np.percentile(every, [0.2, 99.8])
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    middle = (edges[1:] + edges[:-1]) / 2
    curves = {
        title: (middle, np.histogram(level[np.isfinite(level)], edges, density=True)[0])
        for title, level in levels.items()
    }
    curves["Rayleigh fading"] = (middle, rayleigh_db(middle))
    svg = draw.lines(
        "levels", curves, roles, "level relative to the link's median, dB", "density, 1/dB", "Distribution of levels"
    )
    caption = (
        "Distribution of the level over rounds and subcarriers. For comparison the density of Rayleigh fading with the "
        "same median; a direct path, or a surface that holds one pattern, makes it narrower."
    )
    return "<h3>Distribution of levels</h3>" + picture(svg, caption)


def _profiles(draw: Pictures, profiles: dict[str, tuple[F64, F64]], roles: dict[str, tuple[str, bool]]) -> str:
    svg = draw.lines("delay_profile", profiles, roles, "delay, µs", "power, dB", "Power over delay")
    caption = (
        "Mean power over delay, relative to its peak, from the inverse Fourier transform of each estimate (Hann "
        "window; subcarriers that were not used count as zero). Delay 0 is each receiver's own start of the frame."
    )
    return "<h3>Delay profile</h3>" + picture(svg, caption)


def autocorrelation(level: F64) -> F64:
    """Return the autocorrelation over rounds of (round, subcarrier) levels, a mean over subcarriers, from lag 0.

    This is the usual biased estimate: the sum over the pairs, divided by the sum over all; missing rounds count as 0.
    """
    x = level - np.nanmean(level, axis=0)
    x = np.where(np.isfinite(x), x, 0.0)
    power = (x * x).sum(axis=0)
    x, power = x[:, power > 0], power[power > 0]
    lags = min(MAX_LAGS, len(x) // 2)
    if not power.size:
        return np.zeros(lags + 1)
    return np.array([((x[k:] * x[: len(x) - k]).sum(axis=0) / power).mean() for k in range(lags + 1)])


def rayleigh_db(level_db: F64) -> F64:
    """Return the density, 1/dB, of the level of Rayleigh fading whose median is 0 dB.

    With p = ln 2 · 10^(L/10) the power over its mean, exponential of mean 1, the density is p·e^(−p)·ln(10)/10.
    """
    p = np.log(2) * 10 ** (level_db / 10)
    out: F64 = p * np.exp(-p) * np.log(10) / 10
    return out


def delay_profile(h: np.ndarray, subcarrier_hz: F64) -> tuple[F64, F64] | None:
    """Return delay in µs and mean power in dB relative to its peak of (round, subcarrier) CSI; None where subcarriers
    are not evenly spaced."""
    step_hz = np.diff(np.sort(subcarrier_hz)).min() if subcarrier_hz.size > 1 else 0.0
    if step_hz <= 0:
        return None
    place = (subcarrier_hz - subcarrier_hz.min()) / step_hz
    if np.abs(place - place.round()).max() > 1e-3 or place.max() > 1 << 14:
        return None
    known = np.isfinite(h).all(axis=1)
    n = int(place.max().round()) + 1
    grid = np.zeros((int(known.sum()), n), dtype=np.complex128)
    grid[:, place.round().astype(int)] = h[known]
    power = (np.abs(np.fft.ifft(grid * np.hanning(n + 2)[1:-1], axis=1)) ** 2).mean(axis=0)
    if not power.size or not power.max() > 0:
        return None
    order = np.fft.fftshift(np.arange(n))
    delay_us = np.fft.fftshift(np.fft.fftfreq(n, step_hz)) * 1e6
    return delay_us, np.maximum(10 * np.log10(np.maximum(power[order] / power.max(), 1e-30)), _AT_LEAST_DB)
