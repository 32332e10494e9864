"""What the README lists is what the code has. Its blocks, commands and links are tried by ``test_docs``."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

import airflow_gemini_batch
from airflow_gemini_batch import GeminiBatchOperator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


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
    from airflow_gemini_batch.core.table import COLUMNS

    named = re.search(r"Columns: (.*?), then what", README, re.DOTALL)
    assert named is not None
    assert re.findall(r"`(\w+)`", named[1]) == list(COLUMNS)


def test_the_readme_names_every_status() -> None:
    from airflow_gemini_batch.core.results import Status

    table = README.partition("| status | meaning |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert listed == {status.value for status in Status}


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make (\w+)", README, re.MULTILINE)) <= targets


def test_every_code_stands_on_its_side_of_the_readmes_table() -> None:
    from airflow_gemini_batch.core.results import CODES

    row = README.partition("| passing | final |")[2].split("\n")[2]
    sides = [set(re.findall(r"(\d+) ([A-Z_]+)", side)) for side in row.strip("|").split(" | ")]
    assert sides == [
        {(str(code), name) for code, (name, may) in CODES.items() if may is passing} for passing in (True, False)
    ]


def test_the_readme_names_every_parameter_with_its_default() -> None:
    table = README.partition("| parameter | default | meaning |")[2].partition("\n\n")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE))
    signature = inspect.signature(GeminiBatchOperator.__init__).parameters.values()
    parameters = [one for one in signature if one.kind is one.KEYWORD_ONLY]
    assert list(listed) == [one.name for one in parameters]
    for one in parameters:
        told = listed[one.name]
        if one.default is one.empty:
            assert told == "required", one.name
        else:
            assert ast.literal_eval(told.strip("`")) == one.default, one.name


def test_the_readme_names_every_template_field() -> None:
    told = re.search(r"^Templated are (.*?)\.$", README, re.MULTILINE | re.DOTALL)
    assert told is not None
    fields = ["output" if name == "output_uri" else name for name in GeminiBatchOperator.template_fields]
    assert sorted(re.findall(r"`(\w+)`", told[1])) == sorted(fields)


OPERATORS = [name for name in airflow_gemini_batch.__all__ if name.endswith(("Operator", "Sensor"))]


@pytest.mark.parametrize("name", OPERATORS)
def test_the_docstring_names_every_parameter_of_its_operator(name: str) -> None:
    """The reference is built from it."""
    operator = getattr(airflow_gemini_batch, name)
    told = inspect.getdoc(operator) or ""
    if "all else is as with" in told:  # GeminiCreateEmbeddingsBatchJobOperator
        told += inspect.getdoc(operator.__mro__[1]) or ""
    named = re.findall(r"^\s*:param (\w+):", told, re.MULTILINE)
    of_it = parameters_of(operator)
    if not issubclass(operator, GeminiBatchOperator):  # its bases are not in the reference
        of_it += [
            one for base in operator.__mro__ if base.__module__ == operator.__module__ for one in parameters_of(base)
        ]
    assert set(of_it) - {"poke_interval"} <= {*named}
    taken = getattr(operator, "_takes", frozenset())
    assert taken <= {*named, *re.findall(r"``(\w+)``", told)}
    if operator is GeminiBatchOperator:
        assert named == of_it


def parameters_of(operator: type) -> list[str]:
    signature = inspect.signature(operator.__init__).parameters.values()  # type: ignore[misc]
    return [one.name for one in signature if one.kind is one.KEYWORD_ONLY]
