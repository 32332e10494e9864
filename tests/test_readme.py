"""Every Python block of the README runs; every command it names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_a_readme_block_runs_as_it_stands(block: str) -> None:
    exec(compile(block, "README.md", "exec"), {})


def test_the_readme_names_the_columns_that_land() -> None:
    from airflow_gemini_batch.core.landing import COLUMNS

    named = re.search(r"Columns: (.*?), then the columns", README, re.DOTALL)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1]) == list(COLUMNS)


def test_the_readme_names_every_status() -> None:
    from airflow_gemini_batch.core.results import Status

    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert listed == {status.value for status in Status} - {"invalid_output"}


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)) <= targets
