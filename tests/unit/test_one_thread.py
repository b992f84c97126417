"""Numerical libraries are kept to one thread, and get back what they had."""

from __future__ import annotations

import os

import numpy as np
import pytest

from testbed.core import threads


def test_what_is_loaded_and_what_will_be_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    np.dot(np.ones((2, 2)), np.ones((2, 2)))  # its BLAS is loaded
    (count, limit), *_ = threads._loaded_blas()
    before = count()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    try:
        limit(2)
        with threads.one_thread():
            assert count() == 1
            assert {os.environ[name] for name in threads.ONE_THREAD} == {"1"}
        assert count() == 2
    finally:
        limit(before)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ


def test_where_libraries_cannot_be_listed_the_environment_is_set_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    monkeypatch.setattr(threads, "_MAPS", type(threads._MAPS)(tmp_path, "none"))
    with threads.one_thread():
        assert os.environ["OPENBLAS_NUM_THREADS"] == "1"
