"""The IIO devices of a PlutoSDR: AD936x transceiver, the converters' two DMA engines, the FPGA's own ADC.

Names, file names and value formats are those of the Linux drivers (ad9361, cf_axi_adc, cf_axi_dds, xadc).
"""

from __future__ import annotations

import errno

from sim_backend.emulators.iio_tree import UNREADABLE, Channel, Device, Key, Tree
from sim_backend.emulators.pluto_debug import AD936X

PHY, XADC, DAC, ADC = "iio:device0", "iio:device1", "iio:device2", "iio:device3"
RATE_FILES: list[Key] = [
    (PHY, "in_voltage_sampling_frequency"),
    (PHY, "out_voltage_sampling_frequency"),
    (DAC, "out_voltage_sampling_frequency"),
    (DAC, "out_altvoltage_sampling_frequency"),
    (ADC, "in_voltage_sampling_frequency"),
]
"""Attributes of the sample rate; one clock determines them all."""
REFUSALS: dict[Key, int] = {
    # no profile was recalled yet
    (PHY, "out_altvoltage0_RX_LO_fastlock_recall"): errno.EINVAL,
    (PHY, "out_altvoltage1_TX_LO_fastlock_recall"): errno.EINVAL,
    # the chip's own crystal oscillator is not fitted
    (PHY, "dcxo_tune_coarse"): errno.ENODEV,
    (PHY, "dcxo_tune_fine"): errno.ENODEV,
    # write only
    (PHY, "multichip_sync"): errno.EACCES,
    # the second receiver is off
    (PHY, "debug/gaininfo_rx2"): errno.EAGAIN,
    # no PPS input in the FPGA
    (ADC, "in_voltage_samples_pps"): errno.ENODEV,
}
"""Attributes that a real PlutoSDR does not let a client read, and the errno; all others can be read."""
LO_RANGES_HZ = {"ad9363a": (325_000_000, 3_800_000_000), "ad9364": (70_000_000, 6_000_000_000)}
BANDWIDTHS_HZ = {"ad9363a": (20_000_000, 20_000_000), "ad9364": (56_000_000, 40_000_000)}
"""The widest analogue filters, for reception and transmission."""
TONES = ("TX1_I_F1", "TX1_I_F2", "TX1_Q_F1", "TX1_Q_F2")
_PORTS_RX = "A_BALANCED B_BALANCED C_BALANCED A_N A_P B_N B_P C_N C_P TX_MONITOR1 TX_MONITOR2 TX_MONITOR1_2"


def tone_file(index: int, attribute: str) -> Key:
    """Return the key of an attribute of the DDS tone `index`."""
    return DAC, f"out_altvoltage{index}_{TONES[index]}_{attribute}"


def pluto_tree(serial: str, model: str, firmware: str) -> Tree:
    """Return the tree of a PlutoSDR as it is after booting. `model`: ad9363a (as sold) or ad9364 (range unlocked)."""
    values: dict[Key, str] = {}
    low, high = LO_RANGES_HZ[model]
    widest_rx, widest_tx = BANDWIDTHS_HZ[model]

    def channel(
        device: str, id_: str, io: str, attributes: dict[str, str], *, name: str | None = None, form: str | None = None,
        shared: tuple[str, ...] = (),
    ) -> Channel:  # fmt: skip
        """`shared` attributes are one file for all channels of the kind."""
        kind = id_.rstrip("0123456789")
        files = {}
        for attribute, value in attributes.items():
            stem = f"{io}_{kind}" if attribute in shared else f"{io}_{id_}{f'_{name}' if name else ''}"
            files[attribute] = f"{stem}_{attribute}"
            values[device, files[attribute]] = value
        return Channel(id_, io == "out", files, name, form)

    def lo(id_: str, name: str, frequency_hz: int) -> Channel:
        attributes = {
            "external": "0", "fastlock_load": "0", "fastlock_recall": UNREADABLE,
            "fastlock_save": "0 " + "79," * 15 + "79",
            "fastlock_store": "0", "frequency": str(frequency_hz), "frequency_available": f"[{low} 1 {high}]",
            "powerdown": "0",
        }  # fmt: skip
        return channel(PHY, id_, "out", attributes, name=name)

    rate = "30720000"
    rates = "[2083333 1 61440000]"
    rx_common = {
        "bb_dc_offset_tracking_en": "1", "filter_fir_en": "0",
        "gain_control_mode_available": "manual fast_attack slow_attack hybrid", "quadrature_tracking_en": "1",
        "rf_bandwidth": "18000000", "rf_bandwidth_available": f"[200000 1 {widest_rx}]",
        "rf_dc_offset_tracking_en": "1",
        "rf_port_select_available": _PORTS_RX, "sampling_frequency": rate, "sampling_frequency_available": rates,
    }  # fmt: skip
    tx_common = {
        "filter_fir_en": "0", "rf_bandwidth": "18000000", "rf_bandwidth_available": f"[200000 1 {widest_tx}]",
        "rf_port_select_available": "A B", "sampling_frequency": rate, "sampling_frequency_available": rates,
    }  # fmt: skip
    rx_own = {
        "gain_control_mode": "slow_attack", "hardwaregain": "71.000000 dB", "hardwaregain_available": "[-3 1 71]",
        "rf_port_select": "A_BALANCED", "rssi": "115.00 dB",
    }  # fmt: skip
    tx_own = {
        "hardwaregain": "-10.000000 dB", "hardwaregain_available": "[-89.750000 0.250000 0.000000]",
        "rf_port_select": "A", "rssi": "0.00 dB",
    }  # fmt: skip
    rx_shared, tx_shared = tuple(rx_common), tuple(tx_common)
    phy = Device(PHY, "ad9361-phy")
    phy.channels = [
        lo("altvoltage1", "TX_LO", 2_450_000_000),
        channel(PHY, "voltage0", "in", dict(sorted((rx_common | rx_own).items())), shared=rx_shared),
        channel(PHY, "voltage3", "out", tx_common | {"raw": "306", "scale": "1.000000"}, shared=tx_shared),
        lo("altvoltage0", "RX_LO", 2_400_000_000),
        channel(PHY, "voltage2", "out", tx_common | {"raw": "306", "scale": "1.000000"}, shared=tx_shared),
        channel(PHY, "temp0", "in", {"input": "36842"}),
        channel(PHY, "voltage0", "out", dict(sorted((tx_common | tx_own).items())), shared=tx_shared),
        channel(
            PHY, "voltage2", "in", rx_common | {"offset": "57", "raw": "975", "scale": "0.305250"}, shared=rx_shared
        ),
        Channel("out", False, {"voltage_filter_fir_en": "in_out_voltage_filter_fir_en"}),
    ]  # fmt: skip
    values[PHY, "in_out_voltage_filter_fir_en"] = "0"
    _plain(phy.attributes, PHY, "", values, {
        "calib_mode": "auto", "calib_mode_available": "auto manual manual_tx_quad tx_quad rf_dc_offs rssi_gain_step",
        "dcxo_tune_coarse": UNREADABLE, "dcxo_tune_coarse_available": "[0 0 0]",
        "dcxo_tune_fine": UNREADABLE, "dcxo_tune_fine_available": "[0 0 0]",
        "ensm_mode": "fdd", "ensm_mode_available": "sleep wait alert fdd pinctrl pinctrl_fdd_indep",
        "filter_fir_config": "FIR Rx: 0,0 Tx: 0,0", "gain_table_config": _gain_table(), "multichip_sync": UNREADABLE,
        "rssi_gain_step_error": f"lna_error: {_zeros(4)}\nmixer_error: {_zeros(16)}\n"
        f"gain_step_calib_reg_val: {_zeros(5)}",
        "rx_path_rates": "BBPLL:983040002 ADC:245760000 R2:122880000 R1:61440000 RF:30720000 RXSAMP:30720000",
        "trx_rate_governor": "nominal", "trx_rate_governor_available": "nominal highest_osr",
        "tx_path_rates": "BBPLL:983040002 DAC:122880000 T2:122880000 T1:61440000 TF:30720000 TXSAMP:30720000",
        "xo_correction": "40000000", "xo_correction_available": "[39992000 1 40008000]",
    })  # fmt: skip
    _plain(phy.debug, PHY, "debug/", values, AD936X | {"gaininfo_rx2": UNREADABLE})

    xadc = Device(XADC, "xadc")
    for i, (name, raw) in enumerate(
        [
            ("vccint", 1387), ("vccaux", 2455), ("vccbram", 1383), ("vccpint", 1387), ("vccpaux", 2453),
            ("vccoddr", 1856), ("vrefp", 1721), ("vrefn", 14), (None, 3296),
        ]
    ):  # fmt: skip
        supply = {"raw": str(raw), "scale": "0.732421875" if name else "0.244140625"}
        xadc.channels.append(channel(XADC, f"voltage{i}", "in", supply, name=name))
    heat = {"offset": "-2219", "raw": "2700", "scale": "123.040771484"}
    xadc.channels.append(channel(XADC, "temp0", "in", heat))
    _plain(xadc.attributes, XADC, "", values, {"sampling_frequency": "961538"})

    both = {"sampling_frequency": rate, "sampling_frequency_available": "30720000 3840000 "}
    dac = Device(DAC, "cf-ad9361-dds-core-lpc")
    for i in range(2):
        scan = {"calibphase": "0.000000", "calibscale": "1.000000", **both}
        dac.channels.append(channel(DAC, f"voltage{i}", "out", scan, form="le:S16/16>>0", shared=tuple(both)))
    for i, name in enumerate(TONES):
        tone = {
            "frequency": "9279985", "phase": "90000" if "_I_" in name else "0", "raw": "1", "sampling_frequency": rate,
            "scale": "0.000000",
        }  # fmt: skip
        dac.channels.append(channel(DAC, f"altvoltage{i}", "out", tone, name=name, shared=("sampling_frequency",)))
    adc = Device(ADC, "cf-ad9361-lpc")
    for i in range(2):
        scan = {
            "calibbias": "0", "calibphase": "0.000000", "calibscale": "1.000000", "samples_pps": UNREADABLE, **both,
        }  # fmt: skip
        shared = ("samples_pps", *both)
        adc.channels.append(channel(ADC, f"voltage{i}", "in", scan, form="le:S12/16>>0", shared=shared))
    for device in (dac, adc):
        ring = {"data_available": "0", "length_align_bytes": "8", "watermark": "2048"}
        _plain(device.buffer, device.id, "buffer/", values, ring)
        _plain(device.debug, device.id, "debug/", values, {"direct_reg_access": "0x0"})
    _plain(adc.debug, ADC, "debug/", values, {"pseudorandom_err_check": "CH0 : PN9 : OK : OK CH1 : PN9 : OK : OK"})

    context = {
        "hw_model": "Analog Devices PlutoSDR Rev.C (Z7010-AD9363A)", "hw_model_variant": "0", "hw_serial": serial,
        "fw_version": firmware, "ad9361-phy,xo_correction": "40000000", "ad9361-phy,model": model,
        "local,kernel": "4.19.0-emulated",
    }  # fmt: skip
    return Tree("Linux (none) 4.19.0-emulated armv7l", context, [phy, xadc, dac, adc], values, REFUSALS)


def _zeros(n: int) -> str:
    return " ".join("0" * n)


def _gain_table() -> str:
    """Return a table of receive gains in the driver's form; the registers' values have no meaning here.

    It contains only every second decibel, because pylibiio reads at most 1024 bytes of an attribute.
    """
    rows = (f"{gain_db}, 0x00, 0x{i:02X}, 0x00" for i, gain_db in enumerate(range(-3, 72, 2)))
    return "\n".join(["<gaintable AD9361 type=FULL dest=3 start=0 end=6000000000>", *rows, "</gaintable>"])


def _plain(names: list[str], device: str, folder: str, values: dict[Key, str], attributes: dict[str, str]) -> None:
    names += attributes
    values.update({(device, folder + name): value for name, value in attributes.items()})
