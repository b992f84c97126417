"""Judging a portfolio: facts, folds, bounds, and attacks that crash or return nonsense."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testbed.core import registry
from testbed.core.errors import InputError
from testbed.core.types import F64, I64, Bits
from testbed.entropy.attack import Attack, load_attacks, portfolio
from testbed.entropy.facts import HIDDEN, Earlier, Facts, Heard
from testbed.entropy.judge import clopper_pearson, folds, inflation, judge, smoothing
from testbed.entropy.read_off import frequencies


def facts(n: int = 120, dimensions: int = 3, bits: int = 2, seed: int = 0, **rest: Any) -> Facts:
    rng = np.random.default_rng(seed)
    probe, dimension = np.divmod(np.arange(n * dimensions), dimensions)
    return Facts(
        **{
            "value": rng.integers(0, 1 << bits, n * dimensions),
            "bits": np.full(n * dimensions, bits),
            "probe": probe,
            "dimension": dimension,
            "published": rng.random(n * dimensions) < 0.1,
            "rounds": np.arange(n) * 2 + 5,
            "time_s": np.arange(n) * 0.1,
            "features": rng.normal(size=(n, dimensions)),
            **rest,
        }
    )


# ---------------------------------------------------------------- facts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"value": np.full(360, 4)}, "label 4 of symbol 0; accepted: 0 to 3"),
        ({"value": np.zeros(359, int)}, "bits has shape"),
        ({"bits": np.full(360, 9)}, "accepted: 1 to 8"),
        ({"probe": np.full(360, 500)}, "accepted: 0 to 119"),
        ({"dimension": np.zeros(360, int)}, "ascending order"),
        ({"rounds": np.zeros(120, int)}, "do not ascend"),
        ({"time_s": np.full(120, np.nan)}, "a time is not finite"),
        ({"features": np.full((120, 3), np.inf)}, "infinite"),
        ({"csi": np.zeros((119, 2), complex)}, "CSI of shape (119, 2)"),
        ({"patterns": np.full((120, 4), np.nan, complex)}, "patterns are not finite"),
        ({"states": np.zeros(3, int)}, "states has shape"),
        ({"columns": np.array([[0, 7], [1, 2], [2, 1]])}, "columns runs from 0 to 7"),
    ],
)
def test_invalid_facts_are_one_line(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as failure:
        facts(**change)
    assert said in str(failure.value)
    assert "\n" not in str(failure.value)


def test_dimensions_of_mixed_depth_are_refused() -> None:
    bits = np.full(360, 2)
    bits[0] = 1
    with pytest.raises(InputError, match="different numbers of bits"):
        facts(bits=bits, value=np.zeros(360, int))


def test_eves_series_and_earlier_ones_are_checked() -> None:
    with pytest.raises(InputError, match=r"eve\.0:alice.*ascend"):
        Heard("eve.0:alice", np.array([3, 3]), np.zeros(2), np.zeros((2, 1)))
    with pytest.raises(InputError, match=r"accepted: \(round, dimension\)"):
        Heard("eve.0:alice", np.array([3, 4]), np.zeros(2), np.zeros((3, 1)))
    early = Earlier("block 0", True, np.array([1]), np.zeros(1), np.zeros((1, 5)))
    with pytest.raises(InputError, match="block 0 has 5 columns; accepted: 3"):
        facts(earlier=(early,))
    heard = Heard("eve2.1:bob", np.array([3, 4]), np.zeros(2), np.zeros((2, 1)))
    assert (heard.node, heard.link) == ("eve2", "bob")


def test_facts_of_bits_take_whole_symbols() -> None:
    bits = Bits(
        np.array([1, 0, 1, 1, 0, 1], np.uint8),
        np.array([0, 0, 0, 0, 1, 1]),
        np.array([0, 0, 1, 1, 0, 0]),
        np.array([0, 1, 0, 1, 0, 1]),
    )
    published = np.array([True, True, True, False, False, False])
    found = Facts.of_bits(bits, published, np.array([4, 9]), np.array([0.0, 1.0]), np.zeros((2, 2)))
    assert found.value.tolist() == [2, 3, 1]
    assert found.bits.tolist() == [2, 2, 2]
    assert found.published.tolist() == [True, False, False]
    assert (found.kept_bits, found.n_labels) == (4, 4)


def test_a_view_hides_label_feature_and_csi_and_nothing_else() -> None:
    whole = facts(csi=np.ones((120, 2), complex))
    test = np.array([0, 4])  # probe 0 dimension 0, probe 1 dimension 1
    view = whole.hide(test)
    assert (view.value == HIDDEN).nonzero()[0].tolist() == [0, 4]
    assert np.argwhere(np.isnan(view.features)).tolist() == [[0, 0], [1, 1]]
    assert np.isnan(view.csi).all(axis=1).nonzero()[0].tolist() == [0, 1]
    assert (whole.value >= 0).all()
    vectors = facts(n=10, dimensions=2, columns=np.array([[0, 2], [1, 3]]), features=np.zeros((10, 4)))
    assert np.argwhere(np.isnan(vectors.hide(np.array([3])).features)).tolist() == [[1, 1], [1, 3]]


# ---------------------------------------------------------------- folds


@pytest.mark.parametrize("kind", ["probes", "symbols"])
def test_every_kept_symbol_is_in_one_fold_and_neighbours_are_in_others(kind: str) -> None:
    whole = facts(n=300)
    parts = folds(whole, kind, 7)
    assert np.sort(np.concatenate(parts)).tolist() == whole.kept.tolist()
    assert len(parts) == 10
    for part in parts:
        same = [whole.probe[part][whole.dimension[part] == d] for d in range(3)]
        assert min(int(np.diff(p).min()) for p in same) > 5
    if kind == "probes":
        assert sum(np.unique(whole.probe[p]).size for p in parts) == np.unique(whole.probe[whole.kept]).size
    else:
        assert all(np.unique(whole.probe[p], return_counts=True)[1].max() == 1 for p in parts)


def test_folds_follow_from_the_seed() -> None:
    one, two, other = (folds(facts(), "probes", seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------- attacks that are tried


class Told(Attack):
    """Says what a function says."""

    knows = "what a test tells it"
    folds = "symbols"

    def __init__(self, say: Callable[[Facts, I64, I64], F64], freedom: float = 0.0) -> None:
        super().__init__()
        self.say, self.freedom = say, freedom

    def predict(self, facts: Facts, train: I64, test: I64) -> F64:
        return self.say(facts, train, test)

    @property
    def degrees_of_freedom(self) -> float:
        return self.freedom


def uniform(facts: Facts, train: I64, test: I64) -> F64:
    p = np.zeros((test.size, facts.n_labels))
    for row, bits in zip(p, facts.bits[test], strict=True):
        row[: 1 << bits] = 1.0 / (1 << bits)
    return p


def test_an_eve_who_knows_nothing_leaves_all_bits_to_the_model_and_the_limit_to_the_estimate() -> None:
    whole = facts(n=400)
    found = judge(whole, attacks=[Told(uniform)])
    (finding,) = found.findings
    m, n = whole.kept_bits, whole.kept.size
    assert finding.log_loss_bits == pytest.approx(m)
    assert finding.smoothing_bits == pytest.approx(0.0, abs=1e-6)
    assert found.min_entropy("modelled") == pytest.approx(m)
    limit = clopper_pearson(finding.hits, n, finding.inflation, 2.0**-66)
    assert finding.estimated_bits == pytest.approx(-n * np.log2(limit))
    assert found.delta_log2 == -66


def test_an_eve_who_knows_everything_leaves_nothing() -> None:
    whole = facts()
    secret = whole.value

    def sure(_: Facts, train: I64, test: I64) -> F64:
        return np.eye(4)[secret[test]]

    found = judge(whole, attacks=[Told(sure), Told(uniform)])
    assert found.findings[0].guess_probability == 1.0
    assert found.min_entropy("estimated") == 0.0 == found.min_entropy("modelled")


def test_freedom_is_charged_once_by_the_largest_and_below_half_there_is_nothing() -> None:
    whole = facts(n=400)
    m = whole.kept_bits
    found = judge(whole, attacks=[Told(uniform, 100.0), Told(uniform, 10.0)])
    assert found.min_entropy("modelled") == pytest.approx(m - 72.0 * 1.3)
    found = judge(whole, attacks=[Told(uniform, 0.5 * m / 0.72 + 1)])
    assert found.min_entropy("modelled") == 0.0


def test_more_attacks_and_blocks_only_lower_the_limit() -> None:
    whole = facts(n=400)
    one = judge(whole, attacks=[Told(uniform)]).min_entropy("estimated")
    many = judge(whole, attacks=[Told(uniform) for _ in range(7)])  # and all of them together
    assert many.attacks == 8
    blocks = judge(whole, attacks=[Told(uniform)], blocks=8).min_entropy("estimated")
    assert many.min_entropy("estimated") == blocks < one


def test_each_depth_has_a_limit_of_its_own() -> None:
    n = 300
    bits = np.tile([1, 3], n)
    rng = np.random.default_rng(3)
    whole = facts(n=n, dimensions=2, bits=3, value=rng.integers(0, 1 << bits), **{"features": rng.normal(size=(n, 2))})
    whole = replace(whole, bits=bits)
    (finding,) = judge(whole, attacks=[Told(uniform)]).findings
    kept = whole.kept
    expected = 0.0
    for depth in (1, 3):
        rows = kept[whole.bits[kept] == depth]
        hits = np.count_nonzero(whole.value[rows] == 0)
        expected -= rows.size * np.log2(clopper_pearson(hits, rows.size, finding.inflation, 2.0**-67))
    assert finding.estimated_bits == pytest.approx(expected)


def broken(kind: str) -> Callable[[Facts, I64, I64], F64]:
    def say(facts: Facts, train: I64, test: I64) -> F64:
        p = np.full((test.size, 4), 0.25)
        if kind == "sum":
            p[0, 0] = 0.5
        elif kind == "nan":
            p[0, 0] = np.nan
        elif kind == "negative":
            p[0, :2] = -0.25, 0.75
        elif kind == "shape":
            p = p[:, :3]
        elif kind == "crash":
            raise ZeroDivisionError("nothing to divide by")
        return p

    return say


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sum", "add up to"),
        ("nan", "not a number"),
        ("negative", "negative"),
        ("shape", "of shape"),
        ("crash", "ZeroDivisionError: nothing to divide by"),
    ],
)
def test_an_attack_that_fails_is_counted_and_stops_the_key(kind: str, said: str) -> None:
    found = judge(facts(), attacks=[Told(uniform), Told(broken(kind))])
    (failure,) = found.failures
    assert said in failure.reason
    assert len(found.findings) == 1
    assert found.min_entropy("estimated") == 0.0 == found.min_entropy("modelled")


def test_probability_for_labels_that_a_symbol_does_not_have_is_refused() -> None:
    bits = np.tile([1, 2], 100)
    whole = replace(facts(n=100, dimensions=2, value=np.zeros(200, int)), bits=bits)
    found = judge(whole, attacks=[Told(lambda f, train, test: np.full((test.size, 4), 0.25))])
    assert found.failures


def test_the_canary_finds_an_attack_that_remembers_labels_of_other_folds() -> None:
    memory: dict[int, int] = {}

    def remembers(facts: Facts, train: I64, test: I64) -> F64:
        memory.update(zip(train.tolist(), facts.value[train].tolist(), strict=True))
        p = uniform(facts, train, test)
        for i, symbol in enumerate(test.tolist()):
            if symbol in memory:
                p[i] = np.eye(4)[memory[symbol]]
        return p

    (failure,) = judge(facts(), attacks=[Told(remembers)]).failures
    assert "canary" in failure.reason


def test_what_folds_hide_is_added_to_the_gain() -> None:
    whole = facts(n=400)
    secret = whole.value

    def half(_: Facts, train: I64, test: I64) -> F64:
        p = np.full((test.size, 4), 0.25)
        known = test % 2 == 0
        p[known] = 0.97 * np.eye(4)[secret[test[known]]] + 0.01 * (1 - np.eye(4)[secret[test[known]]])
        return p

    class FromAfar(Told):
        hidden_context = 0.1

    near, far, _ = judge(whole, attacks=[Told(half), FromAfar(half)]).findings
    assert near.hits == far.hits
    gain = whole.kept_bits - near.log_loss_bits
    assert far.log_loss_bits == pytest.approx(whole.kept_bits - gain / 0.9)
    assert far.upper_bound > near.upper_bound


def test_all_of_them_together_know_which_one_is_right_at_a_time_and_where() -> None:
    """Two Eves, each right in spells, one of them in some dimensions only: together they leave what neither leaves."""
    whole = facts(n=400)
    secret, probe, dimension = whole.value, whole.probe, whole.dimension

    def right(where: np.ndarray[Any, Any]) -> Told:
        def say(_: Facts, train: I64, test: I64) -> F64:
            p = np.full((test.size, 4), 0.25)
            known = where[test]
            p[known] = 0.97 * np.eye(4)[secret[test[known]]] + 0.01 * (1 - np.eye(4)[secret[test[known]]])
            wrong = np.roll(np.eye(4), 1, axis=1)[secret[test[~known]]]  # as sure of it as where she is right
            p[~known] = 0.9 * wrong + 0.1 / 4
            return p

        return Told(say)

    spells = probe // 25 % 2 == 0
    left = {}
    for what, wheres in {
        "in time": (spells, ~spells),
        "in dimensions": (dimension == 0, dimension > 0),
        "every other round": (whole.rounds[probe] // 2 % 2 == 0, whole.rounds[probe] // 2 % 2 == 1),
    }.items():
        found = judge(whole, attacks=[right(w) for w in wheres])
        assert found.findings[-1].attack == "together"
        assert min(f.log_loss_bits for f in found.findings[:-1]) > 0.8 * whole.kept_bits
        left[what] = found.findings[-1].log_loss_bits / whole.kept_bits
        assert found.min_entropy("modelled") == 0.0
    assert left["in time"] < 0.15
    assert left["in dimensions"] < 0.05


def test_together_gains_nothing_where_nobody_knows_anything() -> None:
    whole = facts(n=400)
    found = judge(whole, attacks=portfolio(names=["string_near", "string_table", "own_features"]))
    last = found.findings[-1]
    assert last.attack == "together"
    assert last.log_loss_bits > 0.99 * whole.kept_bits
    assert last.guess_probability < 0.3


def test_labels_that_come_later_are_no_evidence() -> None:
    # Each state of the surface is held for two rounds: the second label is known from the first, not the other way.
    rng = np.random.default_rng(5)
    first = rng.normal(size=(200, 1))
    features = np.repeat(first, 2, axis=0) + 1e-3 * rng.normal(size=(400, 1))
    cell = np.searchsorted(np.quantile(features[:, 0], [0.25, 0.5, 0.75]), features[:, 0])
    whole = facts(
        n=400,
        dimensions=1,
        value=cell,
        features=features,
        rounds=np.arange(400),
        published=np.zeros(400, bool),
        states=np.arange(400) // 2,
    )
    found = judge(whole, attacks=portfolio(names=["own_features", "recurrence_state", "string_near"]))
    left = [finding.log_loss_bits for finding in found.findings if finding.attack != "together"]
    assert min(left) == pytest.approx(400, abs=60)  # every second label is new


def test_hidden_labels_and_impossible_budgets_are_refused() -> None:
    whole = facts()
    with pytest.raises(InputError, match="hidden labels"):
        judge(whole.hide(np.array([1])), attacks=[Told(uniform)])
    with pytest.raises(InputError, match="accepted: 1 or more"):
        judge(whole, blocks=0, attacks=[Told(uniform)])


def test_a_judgement_follows_from_its_seed() -> None:
    whole = facts(n=150)
    one, two = judge(whole, seed=4), judge(whole, seed=4)
    assert one == two
    assert not one.failures


def test_nothing_kept_is_no_finding() -> None:
    whole = facts(published=np.ones(360, bool))
    found = judge(whole)
    assert (found.findings, found.failures, found.min_entropy("estimated")) == ((), (), 0.0)


# ---------------------------------------------------------------- bounds


def test_clopper_pearson_limits() -> None:
    # without a hit, (1 − p)^n = δ; with all but one, 1 − p^n − n·p^(n−1)·(1 − p) = … solved by the binomial tail
    assert clopper_pearson(0, 50, 1.0, 2.0**-64) == pytest.approx(1 - 2.0 ** (-64 / 50))
    from scipy.stats import binom

    p = clopper_pearson(700, 3000, 1.0, 1e-12)
    assert binom.cdf(700, 3000, p) == pytest.approx(1e-12, rel=1e-3)
    assert clopper_pearson(10, 10, 1.0, 0.1) == 1.0
    assert clopper_pearson(700, 3000, 2.0, 1e-12) == pytest.approx(clopper_pearson(350, 1500, 1.0, 1e-12))
    assert clopper_pearson(700, 3000, 1.0, 2.0**-80) < 0.35  # the other form gives 1.0 here


def test_hits_that_go_together_inflate_the_variance() -> None:
    rng = np.random.default_rng(0)
    alone = rng.random(4000) < 0.4
    together = np.repeat(rng.random(400) < 0.4, 10)
    probe, depth = np.arange(4000), np.ones(4000, int)
    assert inflation(alone, probe, depth) < 1.8
    assert 6.0 < inflation(together, probe, depth) < 15.0
    # a chance that changes once, in the middle, is no dependence
    step = rng.random(4000) < np.where(probe < 2000, 0.2, 0.8)
    assert inflation(step, probe, depth) < 3.0


def test_smoothing_is_what_rare_surprises_cost() -> None:
    assert smoothing(np.full((1000, 4), 0.25), 67) == pytest.approx(0.0, abs=1e-9)
    p = np.tile([0.7, 0.1, 0.1, 0.1], (3000, 1))
    surprisal = -np.log2(p[0])
    variance = float((p[0] * surprisal**2).sum() - (p[0] * surprisal).sum() ** 2)
    normal = np.sqrt(2 * np.log(2) * 67 * 3000 * variance)  # second order of the equipartition
    assert 0.7 * normal < smoothing(p, 67) < 1.1 * normal
    assert smoothing(p, 67) < smoothing(p, 130)


# ---------------------------------------------------------------- finding attacks


def test_the_portfolio_has_every_kind_and_each_says_what_it_knows() -> None:
    classes, failed = load_attacks()
    assert not failed
    kinds = {"string", "eve", "recurrence", "own", "array", "patterns", "nearest"}
    assert {name.split("_")[0] for name in classes} >= kinds
    assert all(cls.knows and not cls.knows.endswith(".") for cls in classes.values())
    assert [a.name for a in portfolio(names=["nearest", "eve_now"])] == ["nearest", "eve_now"]
    with pytest.raises(ValueError, match="no attack is called psychic"):
        portfolio(names=["psychic"])


def test_a_file_that_is_broken_is_named_and_takes_nothing_else_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "some_attacks"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(
        "import numpy as np\nfrom testbed.entropy.attack import Attack\n"
        "class Good(Attack):\n    knows = 'nothing'\n"
        "    def predict(self, facts, train, test):\n"
        "        return np.full((test.size, facts.n_labels), 1 / facts.n_labels)\n"
    )
    (folder / "broken.py").write_text("import nothing_of_this_name\n")
    (folder / "empty.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    kind = replace(registry.KINDS["attacks"], folder="some_attacks")
    monkeypatch.setitem(registry.KINDS, "attacks", kind)
    monkeypatch.setattr(registry, "_entry_points", lambda path: [])
    classes, failed = load_attacks()
    assert list(classes) == ["good"]
    assert {b.name for b in failed} == {"broken", "empty"}
    assert "nothing_of_this_name" in next(b.reason for b in failed if b.name == "broken")
    found = judge(facts())
    assert {f.attack for f in found.failures} == {"broken", "empty"}
    assert found.min_entropy("estimated") == 0.0
    for name in list(sys.modules):
        if name.startswith("some_attacks"):
            del sys.modules[name]


def test_entry_points_add_attacks_and_a_name_given_twice_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    here = __name__
    points = [
        EntryPoint(name, f"{here}:{what}", "testbed.attacks")
        for name, what in (("theirs", "Told"), ("eve_now", "Told"), ("no_attack", "facts"))
    ]
    monkeypatch.setattr(registry, "_entry_points", lambda path: points)
    classes, failed = load_attacks()
    assert classes["theirs"] is Told
    assert "eve_now" not in classes
    assert {b.name for b in failed} == {"eve_now", "no_attack"}
    assert "given 2 times" in next(b.reason for b in failed if b.name == "eve_now")


def test_frequencies_are_of_training_symbols_of_the_same_depth() -> None:
    whole = facts(n=50, dimensions=1, value=np.zeros(50, int)).hide(np.array([3]))
    train = np.delete(np.arange(50), 3)
    assert frequencies(whole, train)[3].tolist() == pytest.approx([49.5 / 51, *[0.5 / 51] * 3])


def test_an_eve_who_was_away_for_a_whole_block_costs_no_warning() -> None:
    from testbed.entropy.attacks.eve_sign import _likest
    from testbed.entropy.phases import mean_of_known, on_scales

    values = np.array([[1.0, np.nan, 3.0], [2.0, np.nan, np.nan]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mean_of_known(values).tolist()[::2] == [1.5, 3.0]
        assert np.isnan(on_scales(values)[:, 1::3]).all()
        assert _likest(np.array([[1.0], [3.0]]), values).tolist() == [[1.0], [2.0]]
