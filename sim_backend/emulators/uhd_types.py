"""The types of UHD's Python module that stand-ins need: `uhd.types`, and the arguments of `uhd.usrp`.

Names, parameters (`arg0` too), enum values, fields and their access are UHD's (see `uhd_standin`).
"""

from __future__ import annotations

import enum
import math

# ---------------------------------------------------------------- uhd.types


class StreamMode(enum.Enum):
    start_cont = 97
    stop_cont = 111
    num_done = 100
    num_more = 109


class RXMetadataErrorCode(enum.Enum):
    none = 0
    timeout = 1
    late = 2
    broken_chain = 4
    overflow = 8
    alignment = 12
    bad_packet = 15


class TXMetadataEventCode(enum.Enum):
    burst_ack = 1
    underflow = 2
    seq_error = 4
    time_error = 8
    underflow_in_packet = 16
    seq_error_in_packet = 32
    user_payload = 64


class TimeSpec:
    """Seconds, with whole and fractional part separate."""

    __slots__ = ("_frac", "_full")

    def __init__(self, arg0: float, /) -> None:
        self._full = math.floor(arg0)
        self._frac = float(arg0) - self._full

    def get_full_secs(self) -> int:
        return self._full

    def get_frac_secs(self) -> float:
        return self._frac

    def get_real_secs(self) -> float:
        return self._full + self._frac


class StreamCMD:
    __slots__ = ("_mode", "num_samps", "stream_now", "time_spec")

    def __init__(self, arg0: StreamMode, /) -> None:
        self._mode = arg0
        self.num_samps, self.stream_now, self.time_spec = 0, True, TimeSpec(0.0)


class TXMetadata:
    __slots__ = ("end_of_burst", "has_time_spec", "start_of_burst", "time_spec")

    def __init__(self) -> None:
        self.has_time_spec = self.start_of_burst = self.end_of_burst = False
        self.time_spec = TimeSpec(0.0)


class RXMetadata:
    """Read-only, as in UHD; `recv` fills it through `_fill`."""

    __slots__ = ("_values",)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._fill(RXMetadataErrorCode.none)

    def _fill(self, code: RXMetadataErrorCode, time_s: float | None = None, out_of_sequence: bool = False) -> None:
        self._values = (code, time_s, out_of_sequence)

    @property
    def error_code(self) -> RXMetadataErrorCode:
        return self._values[0]

    @property
    def has_time_spec(self) -> bool:
        return self._values[1] is not None

    @property
    def time_spec(self) -> TimeSpec:
        return TimeSpec(self._values[1] or 0.0)

    @property
    def out_of_sequence(self) -> bool:
        return self._values[2]

    def strerror(self) -> str:
        return f"ERROR_CODE_{self.error_code.name.upper()}"


class TXAsyncMetadata:
    """Read-only, as in UHD; `recv_async_msg` fills it."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event: TXMetadataEventCode | None = None

    @property
    def event_code(self) -> TXMetadataEventCode | None:
        return self._event


class TuneRequest:
    __slots__ = ("target_freq",)

    def __init__(self, target_freq: float = 0.0) -> None:
        self.target_freq = target_freq


class TuneResult:
    __slots__ = ("actual_dsp_freq", "actual_rf_freq", "clipped_rf_freq", "target_dsp_freq", "target_rf_freq")

    def __init__(self) -> None:
        self.actual_rf_freq = self.target_rf_freq = self.clipped_rf_freq = 0.0
        self.actual_dsp_freq = self.target_dsp_freq = 0.0


class MetaRange:
    def __init__(self, arg0: float, arg1: float, arg2: float, /) -> None:
        self._start, self._stop, self._step = arg0, arg1, arg2

    def start(self) -> float:
        return self._start

    def stop(self) -> float:
        return self._stop

    def step(self) -> float:
        return self._step

    def clip(self, value: float, clip_step: bool = False) -> float:
        value = min(max(value, self._start), self._stop)
        return self._start + round((value - self._start) / self._step) * self._step if clip_step else value


class SensorValue:
    def __init__(self, arg0: str, arg1: bool, arg2: str, arg3: str, /) -> None:
        self.name, self._truth = arg0, arg1
        self.value, self.unit = ("true", arg2) if arg1 else ("false", arg3)

    def to_bool(self) -> bool:
        return self._truth


class DeviceAddr:
    """`key=value,key=value`."""

    def __init__(self, arg0: str, /) -> None:
        pairs = (p.partition("=") for p in arg0.split(",") if p)
        self._values = {key.strip(): value.strip() for key, _, value in pairs}

    def to_dict(self) -> dict[str, str]:
        return dict(self._values)


# ---------------------------------------------------------------- uhd.usrp


class StreamArgs:
    __slots__ = ("args", "channels", "cpu_format", "otw_format")

    def __init__(self, arg0: str, arg1: str, /) -> None:
        self.cpu_format, self.otw_format, self.args = arg0, arg1, ""
        self.channels: list[int] = []


class SubdevSpec:
    def __init__(self, arg0: str, /) -> None:
        self._text = arg0

    def to_string(self) -> str:
        return self._text
