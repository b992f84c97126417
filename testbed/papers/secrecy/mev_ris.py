"""Paper D's "AP MEV with IRS": the precoder that is best without a surface, kept, and the best phases for it."""

from __future__ import annotations

from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy.model import Secrecy
from testbed.surface.design import Design


def design(model: Secrecy, phase_bits: int | None = None) -> Design:
    """Return the phases by coordinate ascent, where the paper solves its SDP for the same problem."""
    return secrecy_coordinate.design(model, phase_bits=phase_bits, hold_precoder=True)
