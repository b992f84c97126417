"""Searches for the best pattern by probes, then holds it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta, field

from testbed.core import patterns, registry, seeds
from testbed.core.config import Scene
from testbed.core.errors import InputError
from testbed.core.options import StageOptions
from testbed.core.stages import SurfacePolicy, SurfaceSearch
from testbed.core.types import C64, SurfacePattern
from testbed.surface import focus, objectives
from testbed.surface.line_of_sight import LineOfSight

Phase = Literal["start", "model", "model_confirm", "search", "confirm", "held"]


class ClosedLoopOptions(StageOptions, frozen=True):
    search: str = "greedy"
    """Name of the search: a file of `surface/searches`, or an installed one."""
    search_options: dict[str, Any] = field(default_factory=dict)
    """Options of the search (`testbed list search NAME`)."""
    objective: Literal["power", "correlation", "key_rate", "leakage"] = "power"
    """Objective of the search, see `surface/objectives`."""
    probes: Annotated[int, Meta(ge=1)] = 1
    """Rounds in which each pattern is tried; their mean counts."""
    start: str = "random(1)"
    """Pattern with which the search begins, see `core.patterns`."""
    confirm: Annotated[int, Meta(ge=2)] = 8
    """Rounds for which the start and the result are measured; a result worse than the start is dropped."""
    budget: Annotated[int, Meta(ge=0)] = 0
    """The search is ended early so that it and the measurements of its result are over by this round; 0: no limit."""
    search_only: bool = False
    """Whether the run serves only this search: it then ends when the search does, and makes no key."""
    model: Literal["none", "start", "answer"] = "none"
    """start: after `start`, the patterns that focus from Alice on Bob by the scene's geometry are tried
    (`surface/focus`), and the search begins with the best of them; answer: that one is the result."""

    def __post_init__(self) -> None:
        least = 2 * self.confirm + self.probes
        if 0 < self.budget < least:
            raise ValueError(f"budget = {self.budget}, accepted: 0 (none) or from {least}")


class ClosedLoop(SurfacePolicy):
    """Probes the patterns that a search asks for, and gives it the objective's value of each."""

    options_type = ClosedLoopOptions
    options: ClosedLoopOptions
    watches = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        o = self.options
        patterns.check(o.start)
        self.objective = objectives.by_name(o.objective)
        self._search: SurfaceSearch = registry.make_stage("search", o.search, o.search_options, "", "search_options")
        self._probes, self._start, self._confirm, self._budget = o.probes, o.start, o.confirm, o.budget
        self.search_only, self._model = o.search_only, o.model
        self._scene: tuple[Scene, float] | None = None
        self._designed: list[SurfacePattern] = []
        """Patterns from the model that were not tried yet."""
        self.phase: Phase = "start"
        self.before: float | None = None
        """Worth of the start, in the objective's own terms."""
        self.after: float | None = None
        """Worth of the result, measured again."""
        self.best: tuple[SurfacePattern, float] | None = None
        """The pattern of highest worth so far, and that worth."""
        self._floor: tuple[SurfacePattern, float] | None = None
        """The pattern with which the search began (the start or the best of the model's patterns) and its worth,
        measured again."""
        self.tried = 0
        """Patterns judged so far."""
        self.unjudged = 0
        """Rounds that lacked a link that the objective needs."""

    def survey(self, scene: Scene, carrier_hz: float) -> None:
        if self._model != "none":
            LineOfSight.of(scene, carrier_hz, (1, 1))  # raises here if the scene allows no model, whatever the board
            self._scene = scene, carrier_hz

    def begin(self, shape: tuple[int, int], phase_bits: int, seed: int) -> None:
        self._tried = self._began = patterns.make(self._start, shape, phase_bits)
        self._seed = seed
        self._search.begin(self._tried, seeds.generator(seed, "search"))
        if self._model != "none":
            if self._scene is None:
                raise InputError(
                    f"model = {self._model!r} needs the scene's geometry, which this experiment does not give"
                )
            self._designed = focus.candidates(LineOfSight.of(*self._scene, shape), phase_bits)
        self._heard: list[Mapping[str, C64]] = []
        self._one_round = 0.0
        """Standard deviation of one round's worth."""

    def pattern_for(self, round: int) -> SurfacePattern:
        trying = self.phase in ("model", "model_confirm", "search")
        if self._budget and trying and round >= self._budget - self._confirm:
            self._heard.clear()
            self._go("confirm", self.best[0] if self.best else self._began)
        return self._tried

    def observe(self, round: int, links: Mapping[str, C64]) -> None:
        if self.phase == "held":
            return
        if not all(link in links for link in self.objective.needs):
            self.unjudged += 1
            return
        self._heard.append(links)
        if len(self._heard) < (self._probes if self.phase in ("model", "search") else self._confirm):
            return
        judged = self.objective.judge(self._heard)
        self._heard = []
        assert judged is not None
        self._judged(*judged)

    def _judged(self, worth: float, spread: float) -> None:
        match self.phase:
            case "start":
                self.before, self._one_round = worth, spread
                self.best = self._floor = self._tried, worth
                if self._designed:
                    self._go("model", self._designed.pop())
                else:
                    self._go("search", self._search.ask())
            case "model":
                self._note(worth)
                if self._designed:
                    self._go("model", self._designed.pop())
                else:
                    self._go("confirm" if self._model == "answer" else "model_confirm", self._best_pattern)
            case "model_confirm":
                # The search must exceed the value that was measured again: the first one may have been high by chance.
                self._floor, self._one_round = (self._tried, worth), spread
                self.best = self._floor
                self._search.begin(self._tried, seeds.generator(self._seed, "search"))
                self._go("search", self._search.ask())
            case "search":
                self._note(worth)
                self._search.tell(worth, self._one_round / np.sqrt(self._probes))
                # The result is the pattern that the search returns at its end, not the one with the highest noisy
                # value.
                self._go("confirm" if self._search.done else "search", self._search.ask())
            case "confirm":
                if self._floor is not None and worth <= self._floor[1]:
                    self._tried, worth = self._floor
                self.after, self.best = worth, (self._tried, worth)
                self._go("held", self._tried)

    def _note(self, worth: float) -> None:
        self.tried += 1
        if self.best is None or worth > self.best[1]:
            self.best = self._tried, worth

    @property
    def _best_pattern(self) -> SurfacePattern:
        assert self.best is not None
        return self.best[0]

    def _go(self, phase: Phase, pattern: SurfacePattern) -> None:
        self.phase, self._tried = phase, pattern
        self.done = phase == "held"
