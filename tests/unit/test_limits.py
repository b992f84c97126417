"""What drivers state of their devices before any is opened, and what the two files ask beyond it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from testbed import config
from testbed.config.check import Violation
from testbed.core.config import Experiment, Lab
from testbed.core.errors import InputError


def lab_of(tmp_path: Path, base: str, *changes: tuple[str, str]) -> Lab:
    text = config.find(Lab, base).read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = tmp_path / "lab.toml"
    path.write_text(text)
    return config.load_lab(str(path))


def tuned(carrier_hz: float = 2.45e9, rate_hz: float = 4e6, **waveform: int) -> Experiment:
    plan = config.load_experiment("onair_first_key")
    radio = msgspec.structs.replace(plan.radio, carrier_hz=carrier_hz, sample_rate_hz=rate_hz)
    probing = msgspec.structs.replace(plan.probing, waveform_options={**plan.probing.waveform_options, **waveform})
    return msgspec.structs.replace(plan, radio=radio, probing=probing)


def keys(found: list[Violation]) -> set[tuple[str, str]]:
    return {(v.node, v.key) for v in found}


ALL = ("alice", "bob", "eve")


@pytest.mark.parametrize(
    ("plan", "beyond"),
    [
        (tuned(), set()),
        (tuned(carrier_hz=5.8e9), {(n, "carrier_hz") for n in ALL}),
        (tuned(carrier_hz=300e6), {(n, "carrier_hz") for n in ALL}),
        (tuned(rate_hz=400e3), {(n, "sample_rate_hz") for n in ALL}),
        (tuned(rate_hz=40e6), {(n, "bandwidth_hz") for n in ALL}),  # 24 of 32 bins: 30 MHz
        (tuned(rate_hz=20e6), set()),
    ],
    ids=["within", "5.8 GHz", "300 MHz", "400 kS/s", "30 MHz wide", "15 MHz wide"],
)
def test_a_stock_pluto_does_what_it_does(tmp_path: Path, plan: Experiment, beyond: set[tuple[str, str]]) -> None:
    found = config.violations(plan, lab_of(tmp_path, "wire"))
    assert keys(found) == beyond
    for v in found:
        assert "PlutoSDR as sold (ad9363a)" in v.detail
        assert "of the experiment" in v.change
    if beyond:
        with pytest.raises(InputError, match=r"^EXPERIMENT on lab wire: ") as caught:
            config.check_limits(plan, lab_of(tmp_path, "wire"), "EXPERIMENT")
        assert "\n" not in str(caught.value)


def test_an_unlocked_one_does_more(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "wire", ("\ncfo_ppm", '\nmodel = "ad9364"\ncfo_ppm'))
    assert config.violations(tuned(carrier_hz=5.8e9, rate_hz=40e6), lab) == []


def test_a_real_lab_may_say_which_model_it_has(tmp_path: Path) -> None:
    """Without the option every Pluto may be unlocked; the device's own limits are known only once it is opened."""
    plan = tuned(carrier_hz=5.8e9)
    assert config.violations(plan, lab_of(tmp_path, "bench_example")) == []
    lab = lab_of(tmp_path, "bench_example", ('options = { uri = "ip', 'options = { variant = "ad9363a", uri = "ip'))
    assert keys(config.violations(plan, lab)) == {(n, "carrier_hz") for n in ALL}
    assert keys(config.violations(plan, lab, ["bob"])) == {("bob", "carrier_hz")}


def test_gains_are_the_labs(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "wire", ("tx_gain_db = -6.0           # attenuation: 0 dB is loudest", "tx_gain_db = 6.0"))
    (found,) = config.violations(tuned(), lab)
    assert (found.node, found.key) == ("alice", "tx_gain_db")
    assert found.change == "change it in table [node.alice] of the lab (nearest: 0)"


def test_only_eve_may_be_deaf_to_orders_to_send(tmp_path: Path) -> None:
    """A receive-only radio is accepted for Eve, with any transmit gain in the file."""
    for role, beyond in (("eve", set()), ("bob", {("bob", "role")})):
        lab = lab_of(
            tmp_path, "sim",
            (f'role = "{role}"\ndriver = "sim"\ntx_gain_db = -6.0',
             f'role = "{role}"\ndriver = "sim"\ntx_gain_db = 99.0\noptions = {{ receive_only = true }}'),
        )  # fmt: skip
        assert keys(config.violations(config.load_experiment("mobile_room"), lab)) == beyond


def test_every_bundled_experiment_on_air_is_within_a_stock_pluto(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "wire")
    names = [n for n in config.bundled(Experiment) if n.startswith("onair")]
    assert names == ["onair_first_key"]
    for name in names:
        assert config.violations(config.load_experiment(name), lab) == []


def test_a_wrong_option_of_an_emulated_device_is_reported_with_its_table(tmp_path: Path) -> None:
    lab = lab_of(tmp_path, "wire", ("cfo_ppm = -8.0", "colour = 1"))
    with pytest.raises(InputError, match=r"table \[world\.emulators\.bob\].*colour"):
        config.check_limits(tuned(), lab, "E")
