"""The jobs that study `secrecy` gives to its processes: labels, curves, nets, SDP; arguments and results are plain
data."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from testbed.core import seeds
from testbed.core.types import F64
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy import levels as secrecy_levels
from testbed.papers.secrecy import mev, mev_ris, rate_net
from testbed.papers.secrecy import sdp as sdp_route
from testbed.papers.secrecy import supervised as secrecy_supervised
from testbed.papers.secrecy.model import Secrecy
from testbed.papers.secrecy.nets import Scene
from testbed.surface.design import Design
from testbed.surface.levels import project

SEED = 1
PDF_DBM = 20.0
BITS = (1, 2, 3)
ALTERNATING, MEV_RIS, NO_RIS, RANDOM = "alternating", "MEV + RIS", "No RIS", "random phases"
SUPERVISED, DENSE, UNFOLDED = "supervised net", "dense net, rate-trained", "unfolded net, rate-trained"
LABEL_TOLERANCE = 1e-5
CUT_OFFS = (1, 2, 3, 5, 10, 30)
"""Numbers of rounds after which coordinate ascent is stopped, when it starts from a net's phases or from aligned
ones."""
SCENE = Scene()


@dataclass(frozen=True)
class Size:
    """The numbers of channels, epochs and so on of a study."""

    n_channels: int
    powers_dbm: tuple[float, ...]
    small: int
    """Training sets of figure 4."""
    middle: int
    """Training sets of figure 5."""
    large: int
    """Training sets of all other figures."""
    n_test: int
    epochs: int
    patience: int
    dense_epochs: int
    unfolded_epochs: int
    unfolded_batch: int
    unfolded_steps: int
    n_seeds: int
    n_sdp: int
    sdp_rounds: int
    more_starts: int

    @property
    def n_pool(self) -> int:
        return self.large + self.n_test


@dataclass(frozen=True)
class Loss:
    """One curve of figures 4–10."""

    figure: str
    label: str
    n_train: str
    """Name of one of the sizes."""
    hidden_layers: int
    early: bool = False
    batch_norm: bool = True


LOSSES = (
    Loss("fig4", "4 hidden layers, fewest sets", "small", 4),
    Loss("fig5", "4 hidden layers, more sets", "middle", 4),
    Loss("fig6", "4 hidden layers, most sets", "large", 4),
    Loss("fig7", "3 hidden layers, most sets", "large", 3),
    Loss("fig8", "2 hidden layers, most sets", "large", 2),
    Loss("fig9", "2 hidden layers, early stopping", "large", 2, early=True),
    Loss("fig10", "2 hidden layers, no batch norm", "large", 2, batch_norm=False),
)


def work(job: tuple[Any, ...]) -> Any:
    """Call a function given as (function, arguments…): with one map over different jobs, all cores stay busy."""
    function, *arguments = job
    return function(*arguments)


def pool(size: Size) -> Secrecy:
    """Return the channels of training, then of test; their powers are uniform in dBm."""
    return SCENE.draw(size.n_pool, seeds.generator(SEED, "secrecy", "pool"))


def judged(size: Size, power_dbm: float = PDF_DBM) -> Secrecy:
    """Return the channels on which all methods are compared, the same at every power."""
    return Secrecy.paper(size.n_channels, seeds.generator(SEED, "secrecy", "judged"), power_dbm)


def rate(model: Secrecy, found: Design) -> F64:
    return model.rate(found.precoders, found.phases_rad)


def label(size: Size, first: int, last: int) -> F64:
    """Return the phases (channel, element) of coordinate ascent for the pool's channels from `first` to `last`."""
    return secrecy_coordinate.design(pool(size).take(slice(first, last)), tolerance_bits=LABEL_TOLERANCE).phases_rad


def curve(size: Size, power_dbm: float) -> dict[str, F64]:
    """Return the rates (channel,) of all methods that do not learn."""
    model = judged(size, power_dbm)
    rng = seeds.generator(SEED, "secrecy", "random phases")
    phases = rng.uniform(0, 2 * np.pi, (size.n_channels, model.n_elements))
    return {
        ALTERNATING: rate(model, secrecy_coordinate.design(model)),
        MEV_RIS: rate(model, mev_ris.design(model)),
        RANDOM: model.rate(model.best_precoder(phases), phases),
        NO_RIS: rate(model.without_surface(), mev.design(model)),
    }


def levels(size: Size) -> dict[str, F64]:
    """Return rates (channel,) at 20 dBm, with keys "designer, bits, how", and the rates of the best of several
    starts."""
    model = judged(size)
    rng = seeds.generator(SEED, "secrecy", "starts")
    best, held = secrecy_coordinate.design(model), mev_ris.design(model)
    several = secrecy_coordinate.design(model, more_starts=size.more_starts, rng=rng)
    out = {"best of several starts": rate(model, several)}
    for bits in BITS:
        out |= _both(ALTERNATING, bits, model, best.phases_rad)
        nearest = project(held.phases_rad, bits)
        out[f"{MEV_RIS}, {bits}, projected"] = model.rate(held.precoders, nearest)
        out[f"{MEV_RIS}, {bits}, solved"] = rate(model, mev_ris.design(model, bits))
    return out


def sdp(size: Size, i: int) -> dict[str, Any]:
    """Return rates and seconds of the SDP method and of coordinate ascent on one channel at 20 dBm."""
    model = judged(size).take(slice(i, i + 1))
    rng = seeds.generator(SEED, "secrecy", "sdp", i)
    importlib.import_module("cvxpy")  # loaded before the clock starts, because the method's time does not include it
    began_s = time.perf_counter()
    found = sdp_route.design(model, rng, rounds=size.sdp_rounds)
    middle_s = time.perf_counter()
    ours = secrecy_coordinate.design(model)
    one_s = time.perf_counter() - middle_s
    out = {"SDP bits": float(rate(model, found)[0]), "coordinate bits": float(rate(model, ours)[0])}
    out |= {"SDP s": middle_s - began_s, "coordinate s, alone": one_s, "SDP rounds": len(found.history)}
    for bits in BITS:
        out |= {f"SDP bits, {bits}, {how}": float(v[0]) for how, v in _ways(bits, model, found.phases_rad).items()}
    return out


def batched_s(size: Size) -> float:
    """Return the seconds that coordinate ascent takes for a channel in a large batch."""
    model = judged(size)
    secrecy_coordinate.design(model.take(slice(0, 10)))
    began_s = time.perf_counter()
    secrecy_coordinate.design(model)
    return (time.perf_counter() - began_s) / size.n_channels


def net(size: Size, kind: str, seed: int, labels: F64) -> dict[str, Any]:
    """Train one net on the pool; return its rates (power, channel), those at 20 dBm on levels, and its times."""
    train = pool(size).take(slice(0, size.large))
    began_s = time.perf_counter()
    design: Any
    trained: Any
    if kind == SUPERVISED:
        trained = secrecy_supervised.SupervisedNet(SCENE, seed)
        trained.train(train, labels[: size.large], size.epochs, size.patience, device="cpu")
        design = secrecy_supervised.design
    else:
        if kind == DENSE:
            trained = rate_net.RateNet(SCENE, seed, "dense", hidden=256)
            # layers of this size are no faster on a GPU
            trained.train(train, size.dense_epochs, device="cpu")
        else:
            trained = rate_net.RateNet(SCENE, seed, "unfolded", size.unfolded_steps)
            trained.train(train, size.unfolded_epochs, size.unfolded_batch)
        design = rate_net.design
    out: dict[str, Any] = {"train_s": time.perf_counter() - began_s, "history": trained.history}
    models = [judged(size, dbm) for dbm in size.powers_dbm]
    out["rates"] = np.stack([rate(m, design(m, trained)) for m in models])
    at = judged(size)
    phases = trained.phases(at)
    out["infer_s"] = _least_s(lambda: design(at, trained)) / size.n_channels
    out["refined"] = {n: float(rate(at, design(at, trained, sweeps=n)).mean()) for n in CUT_OFFS}
    if kind == UNFOLDED:
        # in the same process, so that the two times can be compared
        out["cut off"] = _cut_off(at)
    out["levels"] = {}
    for bits in BITS:
        out["levels"] |= _both(kind, bits, at, phases)
    return out


def loss(size: Size, which: Loss, seed: int, labels: F64) -> dict[str, Any]:
    """Train the supervised net for one of figures 4–10; return its losses (epoch,) and the epoch where it stopped."""
    channels, n = pool(size), getattr(size, which.n_train)
    n_test = min(size.n_test, {"small": n, "middle": n // 9, "large": size.n_test}[which.n_train])
    tested = slice(size.large, size.large + n_test)
    trained = secrecy_supervised.SupervisedNet(SCENE, seed, which.hidden_layers, batch_norm=which.batch_norm)
    trained.train(
        channels.take(slice(0, n)), labels[:n], size.epochs, size.patience if which.early else None,
        test=(channels.take(tested), labels[tested]), device="cpu",
    )  # fmt: skip
    return {"train": trained.history, "test": trained.test_history, "stopped_at": trained.stopped_at}


def _cut_off(model: Secrecy) -> dict[int, tuple[float, float]]:
    """Return mean bits and seconds a channel of coordinate ascent that ends after some rounds, from aligned phases."""
    out = {}
    for rounds in (0, *CUT_OFFS):

        def answer(rounds: int = rounds) -> Design:
            phases = secrecy_coordinate.aligned(model)
            if rounds == 0:
                return Design(phases, model.best_precoder(phases))
            return secrecy_coordinate.design(model, phases, rounds=rounds)

        out[rounds] = (float(rate(model, answer()).mean()), _least_s(answer) / len(model.h_au))
    return out


def _least_s(call: Callable[[], object], times: int = 3) -> float:
    """Return the least seconds of a few calls, because other load on the machine only adds time."""
    spent_s = []
    for _ in range(times):
        began_s = time.perf_counter()
        call()
        spent_s.append(time.perf_counter() - began_s)
    return min(spent_s)


def _both(name: str, bits: int, model: Secrecy, phases_rad: F64) -> dict[str, F64]:
    return {f"{name}, {bits}, {how}": rates for how, rates in _ways(bits, model, phases_rad).items()}


def _ways(bits: int, model: Secrecy, phases_rad: F64) -> dict[str, F64]:
    """Return rates (channel,) of phases rounded to a board's levels ("projected") and optimised over them
    ("solved")."""
    ways = {"projected": secrecy_levels.projected, "solved": secrecy_levels.design}
    return {name: rate(model, way(model, phases_rad, bits)) for name, way in ways.items()}
