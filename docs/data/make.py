"""Makes walk.csv: RSSI of Rayleigh fading with Jakes's spectrum, in whole dBm, with lost packets and a late clock."""

from pathlib import Path

import numpy as np

PACKETS, INTERVAL_MS, DOPPLER_HZ, LOST = 400, 20.0, 6.0, 0.05


def fading(rng: np.random.Generator, t_s: np.ndarray, paths: int = 40) -> np.ndarray:
    """Return the level in dB of a sum of plane waves from all sides (Clarke's model)."""
    angle, phase = rng.uniform(0, 2 * np.pi, (2, paths, 1))
    h = np.exp(1j * (2 * np.pi * DOPPLER_HZ * np.cos(angle) * t_s + phase)).sum(axis=0) / np.sqrt(paths)
    return 20 * np.log10(np.abs(h))


def main() -> None:
    rng = np.random.default_rng(19)
    t_s = np.arange(PACKETS) * INTERVAL_MS / 1e3
    between, eve_a, eve_b = (fading(rng, t_s) for _ in range(3))
    links = {("alice", "bob"): between, ("bob", "alice"): between, ("eve", "alice"): eve_a, ("eve", "bob"): eve_b}
    rows = []
    for (node, sender), level in links.items():
        rssi = np.round(-62 + level + rng.normal(scale=0.7, size=PACKETS)).astype(int)
        kept = rng.random(PACKETS) >= LOST
        late_ms = 3.0 if node == "bob" else 0.0
        rows += [(i, i * INTERVAL_MS + late_ms, node, sender, rssi[i]) for i in np.flatnonzero(kept)]
    lines = ["seq,t_ms,node,from,rssi_dbm", *(",".join(map(str, row)) for row in sorted(rows))]
    Path(__file__).with_name("walk.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
