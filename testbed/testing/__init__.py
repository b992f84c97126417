"""The conformance suites, which test whether a driver, a stage or a check keeps its contract. Third parties use them,
too.

Each contract has one function, which raises AssertionError naming every sentence that does not hold, and one class for
pytest with a method for each sentence:

    from testbed import testing

    testing.check_quantizer(MyQuantizer)          # anywhere

    class TestMine(testing.QuantizerSuite):       # with pytest
        make = MyQuantizer

The suite's docstring says what `make` returns. A suite demands nothing that its contract does not state.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from testbed.testing.attack import AttackSuite as AttackSuite
    from testbed.testing.attack import check_attack as check_attack
    from testbed.testing.beams import BeamPolicySuite as BeamPolicySuite
    from testbed.testing.beams import check_beam_policy as check_beam_policy
    from testbed.testing.board import BoardSuite as BoardSuite
    from testbed.testing.board import check_board as check_board
    from testbed.testing.emulator import EmulatorBench as EmulatorBench
    from testbed.testing.emulator import EmulatorSuite as EmulatorSuite
    from testbed.testing.emulator import check_emulator as check_emulator
    from testbed.testing.enhancer import EnhancerSuite as EnhancerSuite
    from testbed.testing.enhancer import check_enhancer as check_enhancer
    from testbed.testing.estimator import EstimatorSuite as EstimatorSuite
    from testbed.testing.estimator import check_estimator as check_estimator
    from testbed.testing.health import HealthCheckSuite as HealthCheckSuite
    from testbed.testing.health import check_health_check as check_health_check
    from testbed.testing.policy import PolicySuite as PolicySuite
    from testbed.testing.policy import check_policy as check_policy
    from testbed.testing.quantizer import QuantizerSuite as QuantizerSuite
    from testbed.testing.quantizer import check_quantizer as check_quantizer
    from testbed.testing.radio import RadioBench as RadioBench
    from testbed.testing.radio import RadioSuite as RadioSuite
    from testbed.testing.radio import check_radio as check_radio
    from testbed.testing.reconciler import ReconcilerSuite as ReconcilerSuite
    from testbed.testing.reconciler import check_reconciler as check_reconciler
    from testbed.testing.search import SearchSuite as SearchSuite
    from testbed.testing.search import check_search as check_search
    from testbed.testing.section import ReportSectionSuite as ReportSectionSuite
    from testbed.testing.section import check_report_section as check_report_section
    from testbed.testing.source import SourceBench as SourceBench
    from testbed.testing.source import SourceSuite as SourceSuite
    from testbed.testing.source import check_source as check_source
    from testbed.testing.study import StudySuite as StudySuite
    from testbed.testing.study import check_study as check_study
    from testbed.testing.waveform import WaveformSuite as WaveformSuite
    from testbed.testing.waveform import check_waveform as check_waveform

_MODULES = {
    "attack": ("check_attack", "AttackSuite"),
    "beams": ("check_beam_policy", "BeamPolicySuite"),
    "board": ("check_board", "BoardSuite"),
    "emulator": ("check_emulator", "EmulatorSuite", "EmulatorBench"),
    "enhancer": ("check_enhancer", "EnhancerSuite"),
    "estimator": ("check_estimator", "EstimatorSuite"),
    "health": ("check_health_check", "HealthCheckSuite"),
    "policy": ("check_policy", "PolicySuite"),
    "quantizer": ("check_quantizer", "QuantizerSuite"),
    "radio": ("check_radio", "RadioSuite", "RadioBench"),
    "reconciler": ("check_reconciler", "ReconcilerSuite"),
    "search": ("check_search", "SearchSuite"),
    "section": ("check_report_section", "ReportSectionSuite"),
    "source": ("check_source", "SourceSuite", "SourceBench"),
    "study": ("check_study", "StudySuite"),
    "waveform": ("check_waveform", "WaveformSuite"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a suite on first use: a board's suite needs neither torch nor the report."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
