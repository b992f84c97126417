"""Errors name the object, the operation and the state, so that one line is enough to act on.

Two families: `TestbedError` ends an operation and is shown to the user; `ProbeRejected` ends one probe and is counted.
"""

from __future__ import annotations

from enum import StrEnum


class TestbedError(Exception):
    """Base of every error shown to a user as one line (exit status 1)."""

    __test__ = False  # prevents pytest from collecting it as a test class, because of its name


class InputError(TestbedError):
    """Bad input from the user: what is wrong, where, what is accepted (exit status 2)."""


class DiskFull(TestbedError):
    """There is no space for what a run has to record."""


class DeviceError(TestbedError):
    """A radio or board failed. The message reads `<device>: <operation> in state <state>: <what happened>`.

    The state is left out where it follows from the operation: an open device fails at work, a closed one at opening.
    """

    def __init__(self, device: str, operation: str, state: str, detail: str) -> None:
        usual = state == "open" or (operation, state) == ("open", "closed")
        super().__init__(f"{device}: {operation}{'' if usual else f' in state {state}'}: {detail}")
        self.device, self.operation, self.state, self.detail = device, operation, state, detail


class LateTransmit(DeviceError):
    """The requested time of a transmission has already passed on the device's clock."""


class DeviceTimeout(DeviceError):
    """A device did not finish in the time it was given."""


class KeyRefused(DeviceTimeout):
    """A device does not answer because of a wrong transport key."""


class ProtocolError(TestbedError):
    """The peer sent something that the protocol does not allow at this point."""


class DialogueFailed(TestbedError):
    """The public discussion between Alice and Bob ended without a key; `reason` is counted."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


class Reject(StrEnum):
    """Why a probe, or the pair it belongs to, was not used. Every rejection is counted under one of these."""

    NO_PREAMBLE = "no_preamble"
    CLIPPED = "clipped"
    LOW_SNR = "low_snr"
    CFO_RANGE = "cfo_range"
    TRUNCATED = "truncated"
    OVERFLOW = "overflow"
    LATE_TX = "late_tx"
    DEVICE = "device"
    TIMEOUT = "timeout"
    SURFACE_CHANGED = "surface_changed"
    SURFACE_NOT_APPLIED = "surface_not_applied"
    NODE_LOST = "node_lost"
    MEASURED = "measured"
    """Measured well at both ends, but no key can be made of it, because the node of one end died with its measurement.
    A replay of the record uses it."""
    DUPLICATE = "duplicate"
    ABORTED = "aborted"
    SOUNDING = "sounding"
    """Nothing was wrong: the round measured all antennas for the beams, and such a round makes no key."""


class ProbeRejected(Exception):
    """One probe is unusable: `reason` is counted, `detail` is logged.

    `cfo_hz`: the carrier offset if that is the reason, None otherwise.
    """

    def __init__(self, reason: Reject, detail: str = "", cfo_hz: float | None = None) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason, self.detail, self.cfo_hz = reason, detail, cfo_hz
