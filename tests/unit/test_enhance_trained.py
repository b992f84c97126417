"""What the trained enhancers learn, against what is known in closed form."""

from typing import Any

import numpy as np
import pytest

from testbed.chain.enhance import crcnet
from testbed.chain.enhance._features import aligned
from testbed.chain.enhance._trained import Split
from testbed.chain.enhance._trainer import NetworkOptions, Scale, squared, train
from testbed.chain.enhance.autoencoder import Autoencoder
from testbed.chain.enhance.calibrated import Calibrated, reciprocity_factor
from testbed.chain.enhance.cca import Cca
from testbed.chain.enhance.crcnet import CrcNet
from testbed.chain.enhance.identity import Identity
from testbed.chain.enhance.linear_mmse import LinearMmse
from testbed.chain.enhance.pca import Pca
from testbed.chain.enhance.wavelet import Wavelet
from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.types import CsiSeries

N = 16
F = np.arange(N) * 312.5e3


def gaussian(rng: np.random.Generator, *shape: int) -> Any:
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def csi(h: Any) -> CsiSeries:
    return CsiSeries(np.asarray(h)[:, None, None, :].astype(np.complex64), np.arange(len(h)), F)


def channels(seed: int, probes: int = 600, taps: int = 4) -> Any:
    rng = np.random.default_rng(seed)
    return gaussian(rng, probes, taps) @ np.fft.fft(np.eye(N))[:taps] / np.sqrt(taps)


def noisy(h: Any, seed: int, noise: float, factor: Any = 1.0, turned: bool = False) -> CsiSeries:
    rng = np.random.default_rng(seed)
    x = h * factor + noise * gaussian(rng, *h.shape)
    if turned:
        late = rng.uniform(-0.1, 0.1, (len(h), 1))
        x = x * np.exp(1j * (rng.uniform(0, 2 * np.pi, (len(h), 1)) + late * np.arange(N)))
    return csi(x)


def ripple(seed: int) -> Any:
    return np.exp(0.4 * gaussian(np.random.default_rng(seed), N))


def cut(series: CsiSeries, first: int, last: int) -> CsiSeries:
    return CsiSeries(series.h[first:last], series.rounds[first:last], series.subcarrier_hz)


def test_alignment_takes_off_phase_and_delay_and_nothing_else() -> None:
    h = channels(1)
    one, other = aligned(noisy(h, 1, 0.0, turned=True)), aligned(noisy(h, 2, 0.0, turned=True))
    np.testing.assert_allclose(one, other, atol=1e-4)
    np.testing.assert_allclose(np.abs(one[:, 0, 0]), np.abs(h), rtol=1e-4, atol=1e-5)


def test_stretches_are_apart() -> None:
    split = Split.of(100, 0.2, 10)
    assert (split.train[-1], split.validate[0], split.validate[-1]) == (69, 80, 99)
    with pytest.raises(ValueError, match="gap = 9 leaves nothing of 20 probes to train, of which 10 validate"):
        Split.of(20, 0.5, 9)


def test_linear_mmse_is_the_wiener_filter() -> None:
    """White channel, noise σ² at Alice: ĥ = h_A/(1 + σ²), and what is left is σ²/(1 + σ²) of the channel's power."""
    rng, noise = np.random.default_rng(1), 0.5
    h = gaussian(rng, 6000, N)
    stage = LinearMmse(step=1, align=False)
    stage.fit(noisy(h, 2, noise), csi(h), rng)
    matrix = stage._model.private["matrix"]  # type: ignore[union-attr]
    np.testing.assert_allclose(matrix, np.eye(N) / (1 + noise**2), atol=0.06)
    assert stage.scores["nmse_after"] == pytest.approx(noise**2 / (1 + noise**2), rel=0.1)


def test_the_reciprocity_factor_is_found_whatever_the_frames_phases() -> None:
    factor = ripple(3)
    a, b = (noisy(channels(1, 2000), s, 0.05, f, turned=True) for s, f in ((1, 1.0), (2, factor)))
    found = reciprocity_factor(a.h.astype(complex), b.h.astype(complex))[0, 0]
    ratio = found / factor
    slope = np.angle((ratio[1:] * ratio[:-1].conj()).sum())  # a common delay and phase cannot be learnt
    ratio = ratio * np.exp(-1j * slope * np.arange(N))
    np.testing.assert_allclose(ratio / ratio.mean() * np.abs(ratio.mean()), 1.0, atol=0.05)


def test_calibration_before_the_alignment_beats_any_map_after_it() -> None:
    h = channels(1, 900)
    a, b = (noisy(h, s, 0.05, f, turned=True) for s, f in ((1, ripple(4)), (2, ripple(5))))
    rng = np.random.default_rng(1)
    left = {}
    for stage in (Calibrated(hidden=0), LinearMmse(), CrcNet(epochs=15)):
        stage.fit(cut(a, 0, 600), cut(b, 0, 600), rng)
        x, y = (stage.transform(cut(c, 650, 900), r).values for c, r in ((a, "alice"), (b, "bob")))
        left[type(stage)] = float(((x - y) ** 2).mean() / y.var())
    assert left[Calibrated] < 0.5 * left[LinearMmse]
    assert left[Calibrated] < 0.5 * left[CrcNet]


def test_the_residual_network_does_no_harm() -> None:
    h = channels(1, 400)
    a, b = noisy(h, 1, 0.2), noisy(h, 2, 0.2)
    without, with_net = Calibrated(hidden=0), Calibrated(hidden=16, epochs=3)
    for stage in (without, with_net):
        stage.fit(a, b, np.random.default_rng(1))
    assert with_net.scores["nmse_after"] <= without.scores["nmse_after"] * (1 + 1e-5)


def test_canonical_variates_agree_best_and_are_sorted() -> None:
    h = channels(1, 2000)
    a, b = (noisy(h, s, 0.4, f) for s, f in ((1, ripple(4)), (2, ripple(5))))
    best = {}
    for stage in (Cca(pairs=4, align=False), Pca(components=8, align=False)):
        stage.fit(cut(a, 0, 1500), cut(b, 0, 1500), np.random.default_rng(1))
        x, y = (stage.transform(cut(c, 1550, 2000), r).values for c, r in ((a, "alice"), (b, "bob")))
        best[type(stage)] = [np.corrcoef(p, q)[0, 1] for p, q in zip(x.T, y.T, strict=True)]
    assert min(best[Cca]) > np.mean(best[Pca])
    # 4 taps of power 1 over noise 0.16 / 4 after projection: ρ = 1 / (1 + 0.04)
    assert best[Cca][0] == pytest.approx(1 / 1.04, abs=0.03)


def test_wavelets_take_noise_and_leave_what_is_smooth() -> None:
    rng = np.random.default_rng(2)
    k = np.linspace(-1, 1, 64)
    smooth = np.tile(2 + k - k**2, (50, 1))
    stage = Wavelet()
    np.testing.assert_allclose(stage.denoise(smooth), smooth, atol=0.02)
    noise = 0.3 * rng.normal(size=smooth.shape)
    assert ((stage.denoise(smooth + noise) - smooth) ** 2).mean() < 0.5 * (noise**2).mean()
    with pytest.raises(InputError, match="accepted"):
        Wavelet(family="db99")


def test_crcnet_has_the_layers_of_the_paper() -> None:
    from torch import nn

    layers = [x for x in crcnet.network(128, 128, 1) if isinstance(x, (nn.Linear, nn.Conv1d))]
    shapes = [
        (x.in_features, x.out_features) if isinstance(x, nn.Linear) else (x.kernel_size[0], x.stride[0], x.padding[0])
        for x in layers
    ]
    assert shapes == [(128, 256), (2, 2, 0), (128, 256), (2, 2, 0), (128, 128)]
    relus = sum(isinstance(x, nn.ReLU) for x in crcnet.network(128, 128, 1))
    assert relus == 4


def test_crcnet_learns_a_map_that_a_line_is() -> None:
    h = channels(1, 500)
    a, b = noisy(h, 1, 0.05), noisy(h, 2, 0.05, 1j * ripple(4))
    stage = CrcNet(epochs=60, align=False)
    stage.fit(a, b, np.random.default_rng(1))
    assert stage.scores["nmse_after"] < 0.3 * stage.scores["nmse_before"]


def test_the_autoencoders_codes_agree_better_than_the_csi() -> None:
    h = channels(1, 700)
    a, b = (noisy(h, s, 0.5) for s in (1, 2))
    code, plain = Autoencoder(codes=8, epochs=40, align=False), Identity(step=2, scale="complex", align=False)
    code.fit(cut(a, 0, 500), cut(b, 0, 500), np.random.default_rng(1))

    def rho(stage: Any) -> float:
        x, y = (stage.transform(cut(c, 520, 700), r).values for c, r in ((a, "alice"), (b, "bob")))
        return float(np.mean([np.corrcoef(p, q)[0, 1] for p, q in zip(x.T, y.T, strict=True)]))

    assert rho(code) > rho(plain)


def test_training_stops_early_and_keeps_the_best_weights() -> None:
    """Targets that are noise: everything learnt is wrong, so the first weights or nearly so are the best."""
    from torch import nn

    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 2))
    split = Split.of(60, 0.3, 2)
    recipe = NetworkOptions(epochs=200, patience=5, batch=16, rate=0.05)

    def build() -> Any:
        return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))

    weights, history = train(build, squared, (x, y), split, recipe, np.random.default_rng(2))
    assert history["epochs"] < 200
    assert history["epochs"] == history["best_epoch"] + 5
    from testbed.chain.enhance._trainer import run

    judged = ((run(build, weights, x[split.validate]) - y[split.validate]) ** 2).mean()
    assert judged == pytest.approx(history["validation_best"], rel=1e-4)
    again, _ = train(build, squared, (x, y), split, recipe, np.random.default_rng(2))
    assert all(np.array_equal(again[k], weights[k]) for k in weights)


def test_scale_brings_the_training_set_to_zero_and_one() -> None:
    x = np.random.default_rng(1).normal(size=(50, 3)) * [1, 10, 1e-6]
    scale = Scale.of(x)
    z = scale.apply(x)
    np.testing.assert_allclose([z.min(axis=0), z.max(axis=0)], [[0, 0, 0], [1, 1, 1]])
    np.testing.assert_allclose(scale.undo(z), x)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CrcNet, {"filters": 0}), (CrcNet, {"epochs": 0}), (CrcNet, {"rate": 0.0}), (CrcNet, {"device": "tpu"}),
        (LinearMmse, {"validation": 0.9}), (LinearMmse, {"gap": -1}), (LinearMmse, {"scale": "phase"}),
        (Pca, {"components": 0}), (Cca, {"pairs": 0}), (Autoencoder, {"agreement": -1.0}),
    ],
)  # fmt: skip
def test_bad_options_are_refused(kind: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="accepted"):
        kind(**options)


@pytest.mark.parametrize("stage", [Pca(components=33), Cca(pairs=17)])
def test_more_components_than_there_are_is_refused(stage: Any) -> None:
    h = channels(1, 60)
    with pytest.raises(ValueError, match="accepted: up to"):
        stage.fit(noisy(h, 1, 0.1), noisy(h, 2, 0.1), np.random.default_rng(1))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("autoencoder", {"agreement": float("nan")}),
        ("autoencoder", {"agreement": float("inf")}),
        ("autoencoder", {"codes": 10**9}),
        ("calibrated", {"hidden": 10**9}),
        ("crcnet", {"filters": 10**9}),
        ("kgnet", {"hidden": [10**9]}),
        ("wavelet", {"strength": float("inf")}),
        ("identity", {"detrend": "highpass", "window": 10**30}),
    ],
)
def test_options_that_no_memory_or_arithmetic_holds_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    last = list(options)[-1]
    with pytest.raises(InputError, match=rf"enhance '{name}': key '{last}': .*accepted: ") as told:
        registry.make_stage("enhance", name, options)
    assert "\n" not in str(told.value)
