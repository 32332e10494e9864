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


def outcome_table() -> str:
    """The table of ``tests/faults/test_nights.py``, where each line is tried out, as the README shows it."""
    from .faults.test_nights import OUTCOMES

    lines = [
        "| how the job ended | the task | rows landed | jobs created | in all, after a clear |",
        "|---|---|---|---|---|",
    ]
    for name, line in OUTCOMES.items():
        task = f"fails: `{line.error.__name__}`" if line.error else "succeeds"
        rows = ", ".join(f"{n} {status}" for status, n in line.statuses.items())
        lines.append(f"| {name} | {task} | {rows} | {line.jobs} | {line.then_jobs} |")
    return "\n".join(lines) + "\n"


def test_the_table_of_outcomes_is_the_one_that_is_tried_out() -> None:
    assert outcome_table() in README


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
