"""A secret surface: names that tell nothing, the same for equal patterns, fresh for every life; who may have one."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

from testbed import config
from testbed.core import seeds
from testbed.core.config import Accounting, ChainPlan, Experiment, ProbingPlan, RadioPlan, SurfacePlan
from testbed.core.errors import InputError
from testbed.core.types import AppliedPattern, SurfacePattern
from testbed.net import messages as m
from testbed.nodes.operations import BoardWork, life_of
from testbed.nodes.secret_surface import UNKNOWN, SecretSurface


def surface(seed: int = 7, shape: tuple[int, int] = (4, 4), life: str = "0") -> SecretSurface:
    return SecretSurface("random", {}, shape, 1, seed, life)


def test_names_follow_the_order_of_drawing_and_nothing_else() -> None:
    one, two = surface(1), surface(2)
    names = [[s.name_of(s.pattern_for(r).digest) for r in range(50)] for s in (one, two)]
    assert names[0] == names[1] == [f"state-0-{i}" for i in range(50)]
    assert not np.array_equal(one.pattern_for(50).levels, two.pattern_for(50).levels)


def test_equal_patterns_have_equal_names() -> None:
    """Two elements of one bit have four patterns: what comes back is seen to come back."""
    s = surface(shape=(1, 2))
    patterns = [s.pattern_for(r) for r in range(60)]
    names = [s.name_of(p.digest) for p in patterns]
    assert set(names) == {f"state-0-{i}" for i in range(4)}
    by_name = {name: {p.levels.tobytes() for p, n in zip(patterns, names, strict=True) if n == name} for name in names}
    assert all(len(levels) == 1 for levels in by_name.values())


def test_what_was_not_drawn_here_has_no_name() -> None:
    s = surface()
    s.pattern_for(0)
    assert s.name_of("0" * 64) == UNKNOWN
    assert UNKNOWN not in (s.name_of(s.pattern_for(r).digest) for r in range(3))


def test_another_life_has_other_names() -> None:
    lives = [surface(life=life) for life in ("a", "b")]
    names = {s.name_of(s.pattern_for(0).digest) for s in lives}
    assert names == {"state-a-0", "state-b-0"}


def test_lives_of_one_machine_have_marks_of_their_own() -> None:
    """Process numbers of a node that was started again begin alike, and in a container they are the same."""
    assert life_of("27181-0123456789ab") != life_of("27185-fedcba987654") != life_of("27185-0123456789ab")


class Held:
    """A board of sixteen elements."""

    shape, phase_bits = (4, 4), 1

    def __init__(self) -> None:
        self.pattern: SurfacePattern | None = None

    def apply(self, pattern: SurfacePattern) -> AppliedPattern:
        self.pattern = pattern
        return AppliedPattern(pattern.digest, 1.0)

    def readback(self) -> SurfacePattern:
        assert self.pattern is not None
        return self.pattern


@pytest.mark.parametrize("secret", [False, True])
def test_nobody_chooses_a_pattern_of_a_secret_surface(secret: bool) -> None:
    work = BoardWork(Held(), "ris", "life")
    plan = SurfacePlan(policy="random", secret=secret)
    configured = m.Configure(
        radio=RadioPlan(), probing=ProbingPlan(), chain=ChainPlan(), accounting=Accounting(), experiment_mode=False,
        record_iq=False, seed=1, surface=plan,
    )  # fmt: skip
    work.configure(configured, "run", 7)
    chosen = m.Apply(round=0, levels=bytes(16), shape=(4, 4), phase_bits=1)
    if secret:
        with pytest.raises(InputError, match="draws its own"):
            work.apply(chosen)
        assert work.apply_next(m.ApplyNext(round=0)).digest == "state-life-0"
        work.configure(msgspec.structs.replace(configured, surface=SurfacePlan(policy="random", secret=False)), "b", 7)
    assert work.apply(chosen).digest == SurfacePattern(np.zeros((4, 4), np.uint8), 1).digest


def test_a_secret_pattern_that_stays_on_the_board_has_no_digest_in_a_later_run_or_process() -> None:
    board, public = Held(), SurfacePattern(np.ones((4, 4), np.uint8), 1)
    configured = m.Configure(
        radio=RadioPlan(), probing=ProbingPlan(), chain=ChainPlan(), accounting=Accounting(), experiment_mode=False,
        record_iq=False, seed=1, surface=SurfacePlan(policy="random"),
    )  # fmt: skip
    open_run = msgspec.structs.replace(configured, surface=SurfacePlan(), experiment_mode=True)
    work = BoardWork(board, "ris", "life")
    work.configure(configured, "a", 7)
    work.apply_next(m.ApplyNext(round=0))
    for later in (work, BoardWork(board, "ris", "other")):
        later.configure(open_run, "b", 8)
        assert later.read_surface(m.ReadSurface(round=1)).digest == UNKNOWN
    work.apply(m.Apply(round=2, levels=public.levels.tobytes(), shape=(4, 4), phase_bits=1))
    work.configure(open_run, "b", 8)  # again in the same run, as after a break of its connection
    assert work.read_surface(m.ReadSurface(round=3)).digest == public.digest


def test_a_name_holds_nothing_of_the_pattern() -> None:
    s = surface(shape=(16, 16))
    for r in range(20):
        pattern = s.pattern_for(r)
        name = s.name_of(pattern.digest)
        assert re.fullmatch(r"state-0-\d+", name)
        assert pattern.digest[:6] not in name


def test_a_seed_of_the_operating_system_is_never_the_same() -> None:
    drawn = {seeds.fresh() for _ in range(100)}
    assert len(drawn) == 100
    assert all(0 <= seed < 1 << 63 for seed in drawn)


# ---------------------------------------------------------------- who may have one


def test_random_patterns_are_secret_unless_they_are_said_not_to_be() -> None:
    assert SurfacePlan(policy="random").is_secret
    assert not SurfacePlan(policy="random", secret=False).is_secret
    for policy in ("none", "fixed", "sweep", "closed_loop"):
        assert not SurfacePlan(policy=policy).is_secret


@pytest.mark.parametrize(
    "table", ['policy = "fixed"', 'policy = "sweep"\noptions = { codebook = ["uniform"] }', 'policy = "none"']
)
def test_a_secret_that_a_policy_cannot_keep_is_refused_in_one_line(tmp_path: Path, table: str) -> None:
    text = config.bundled(Experiment)["static_room"].read_text()
    path = tmp_path / "mine.toml"
    path.write_text(text.replace('policy = "random"', f"{table}\nsecret = true", 1))
    with pytest.raises(InputError) as refused:
        config.load_experiment(str(path))
    said = str(refused.value)
    assert "\n" not in said
    assert "secret" in said
    assert "accepted" in said
    assert "mine.toml" in said
    path.write_text(text.replace('policy = "random"', f"{table}\nsecret = false", 1))
    assert not config.load_experiment(str(path)).surface.is_secret
