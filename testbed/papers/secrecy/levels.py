"""Phases in 2^b levels for paper D: a method's phases rounded to a board's levels, or optimised over the levels."""

from __future__ import annotations

from testbed.core.types import F64
from testbed.papers.secrecy import coordinate as secrecy_coordinate
from testbed.papers.secrecy.model import Secrecy
from testbed.surface.design import Design
from testbed.surface.levels import project


def projected(model: Secrecy, phases_rad: F64, bits: int) -> Design:
    """Return the nearest levels of phases (…, element), with the best precoder for them."""
    nearest = project(model.checked_phases(phases_rad), bits)
    return Design(nearest, model.best_precoder(nearest))


def design(model: Secrecy, phases_rad: F64, bits: int) -> Design:
    """Return levels that no change of a single element improves, found by ascent from those of `projected`."""
    return secrecy_coordinate.design(model, phases_rad, phase_bits=bits)
