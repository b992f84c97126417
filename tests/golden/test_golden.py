"""Runs and replays give what they gave when they were recorded (record.py), and the same seed the same twice.

Where numpy or the processor is another than those of the record, two measurements are compared with each other.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import record

SMALL = "small_room:1"


@pytest.fixture(scope="module")
def before() -> dict[str, Any]:
    return record.recorded()


@pytest.fixture(scope="module")
def comparable(before: dict[str, Any]) -> bool:
    return record.environment() == before["environment"]


def measure(item: str, work: Path) -> dict[str, Any]:
    name = item.split(":")[0]
    if name in record.REPLAYS:
        try:
            record.data_set(name)
        except record.BadInput as missing:
            pytest.skip(str(missing))
    work.mkdir()
    return record.measure(item, work)


def test_the_same_seed_gives_the_same_keys_twice(before: dict[str, Any], comparable: bool, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(measure, [SMALL, SMALL], [tmp_path / "one", tmp_path / "two"])
    assert [len(block["raw_sha256"]) for block in one["blocks"]] == [3]
    assert one["keys_verified"] == 1
    assert record.differences(SMALL, one, two) == []
    if comparable:
        assert record.differences(SMALL, before["items"][SMALL], one) == []


def test_another_seed_gives_other_bits(before: dict[str, Any]) -> None:
    for name, seeds in record.SEEDS.items():
        texts = [[line for line in leaves(before["items"][f"{name}:{seed}"]) if "sha256" in line] for seed in seeds]
        assert texts[0]
        for i, text in enumerate(texts):
            assert all(text != other for other in texts[:i]), f"{name}: two seeds gave the same"


def leaves(value: Any) -> list[str]:
    return record.differences("", None, value)


def test_every_difference_is_named_by_its_place() -> None:
    old = {"rounds": 3, "pairs_rejected": {"low_snr": 1}, "blocks": [{"raw_sha256": {"alice": "a" * 64}}]}
    new = {"rounds": 3, "pairs_rejected": {"late": 1}, "blocks": [{"raw_sha256": {"alice": "b" * 64}}]}
    assert record.differences("x:1", old, old) == []
    assert record.differences("x:1", old, new) == [
        "x:1: pairs_rejected.low_snr: recorded 1, now nothing",
        "x:1: blocks.0.raw_sha256.alice: recorded aaaaaaaaaaaa…, now bbbbbbbbbbbb…",
        "x:1: pairs_rejected.late: recorded nothing, now 1",
    ]


def test_items_are_chosen_by_name_or_by_name_and_seed() -> None:
    assert record.chosen([]) == record.ITEMS
    assert record.chosen(["mimo_walk:2", "small_room"]) == ["mimo_walk:2", "small_room:1", "small_room:2"]
    with pytest.raises(record.BadInput, match=r"mimo_walk:9: no such item; accepted: .*mimo_walk"):
        record.chosen(["mimo_walk:9"])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("item", record.ITEMS)
def test_results_are_those_of_the_record(item: str, before: dict[str, Any], comparable: bool, tmp_path: Path) -> None:
    now = measure(item, tmp_path / "now")
    expected = before["items"][item] if comparable else measure(item, tmp_path / "again")
    differences = record.differences(item, expected, now)
    assert not differences, "\n" + "\n".join(differences)
