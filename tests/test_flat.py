"""
Memory and local disk do not grow with the batch. At a hundredth of the largest size; ``benchmarks/flat.py`` has all of it.

A shard's worth on disk is a request file or a result file of one job, whichever is larger.
"""

from __future__ import annotations

import importlib.util

import pytest

from benchmarks.flat import MEGABYTE, SHARDS_ON_DISK, Measured, measure

pytestmark = pytest.mark.slow


def test_on_an_object_store_two_shards_at_most_are_on_local_disk_and_memory_is_flat() -> None:
    for module in ("moto", "s3fs", "airflow.providers.amazon"):
        try:
            missing = importlib.util.find_spec(module) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            pytest.skip(f"{module} is needed")
    one, four = (measure(size, storage="s3", file_format="jsonl", shards=4) for size in (0.04, 0.16))
    check(one, four, 230)
    for measured in (one, four):
        assert 0.5 < measured.shards_on_disk <= SHARDS_ON_DISK + 0.1, "answers have 2 % around them"


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_memory_is_flat_on_a_local_disk(source: str) -> None:
    one, four = (measure(size, storage="local", source=source, shards=4) for size in (0.05, 0.2))
    check(one, four, 215)


def check(one: Measured, four: Measured, most: float) -> None:
    """:param most: megabytes of its own pages: resident are some 60 to 105 MB more, of mapped libraries."""
    for part in ("task", "emulator"):
        small, large = (getattr(measured, part).own / MEGABYTE for measured in (one, four))
        assert large < small + 40, f"{part}: {small:.0f} MB for a quarter, {large:.0f} MB for the whole"
        assert large < most
