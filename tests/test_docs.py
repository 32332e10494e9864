"""
Every block of code in README and docs is tried.

A Python block runs as it stands: one that defines a DAG through ``dag.test()`` on the emulator, one with operators only
inside a DAG, and any other as a script. The data that they name are here: :func:`lay_out`. All rows must land, and be ``ok``,
unless a comment before the block says otherwise::

    <!-- test: {"state": "failed", "counts": {"ok": 5, "error": 1}, "faults": {"fail_keys": {"r3": {}}}} -->

Commands are not run, but their subcommands, options, targets and extras must exist, and so must options in a .cfg; JSON must
parse.
"""

from __future__ import annotations

import configparser
import csv
import importlib.util
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from airflow_gemini_batch.emulator import Emulator, Faults, Options

from .conftest import HOME, point_at

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("**/*.md"))]
FENCE = re.compile(
    r"(?:^<!-- test: (?P<told>.*?) -->\n+)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    page: Path
    line: int
    kind: str
    text: str
    told: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(*kinds: str) -> Any:
    """A parameter for each block of these kinds."""
    found = [block for page in PAGES for block in _blocks_of(page) if block.kind in kinds]
    return pytest.mark.parametrize("block", found, ids=str)


def _blocks_of(page: Path) -> list[Block]:
    text = page.read_text()
    found = []
    for match in FENCE.finditer(text):
        told = json.loads(match["told"] or "{}")
        assert told.keys() <= {"state", "counts", "faults", "options", "since", "needs"}, f"{page.name}: {told}"
        found.append(Block(page, text.count("\n", 0, match.start("kind")) + 1, match["kind"], match["text"], told))
    return found


# Python -----------------------------------------------------------------------------------------------------


REVIEWS = [
    ("r1", "mug", 5, "Keeps my tea warm for an hour."),
    ("r2", "mug", 1, "The handle broke on the second day."),
    ("r3", "lamp", 4, "Bright enough to read by, but it hums."),
    ("r4", "lamp", 2, "It hums so loud that I cannot sleep."),
    ("r5", "chair", 5, "My back has never been better."),
    ("r6", "chair", 3, "Fine, though the screws were missing."),
]
DAY = "2026-11-20"


def lay_out(home: Path) -> None:
    """The data that the pages speak of: in ``/data`` and ``s3://lake``, and in the database of ``warehouse``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = ("id", "product", "stars", "text")
    records = [dict(zip(names, review, strict=True)) for review in REVIEWS]
    for root in (home / "data", home / "lake"):
        for path in (root / "reviews" / "reviews.csv", root / "reviews.csv"):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as f:
                writer = csv.DictWriter(f, names)
                writer.writeheader()
                writer.writerows(records)
        by_day = root / "by_day" / f"ds={DAY}"
        by_day.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(records), by_day / "reviews.parquet")
        articles = [{"id": f"a{i}", "title": f"Title {i}", "body": f"Body {i}"} for i in range(3)]
        (root / "articles").mkdir()
        pq.write_table(pa.Table.from_pylist(articles), root / "articles" / "articles.parquet")
        shutil.copytree(ROOT / "example_dags" / "data" / "invoices", root / "invoices")
        shutil.copytree(ROOT / "example_dags" / "data" / "pictures", root / "pictures")
        (root / "requests.jsonl").write_text(
            '{"key": "one", "request": {"contents": [{"parts": [{"text": "Say one."}]}]}}\n'
        )
    with closing(sqlite3.connect(home / "warehouse.db")) as connection, connection:
        connection.execute(
            "CREATE TABLE reviews (id TEXT, product TEXT, stars INTEGER, body TEXT, shop TEXT, day TEXT)"
        )
        connection.executemany(f"INSERT INTO reviews VALUES (?, ?, ?, ?, 'Bonn', '{DAY}')", REVIEWS)


def here(text: str, home: Path) -> str:
    """The block with its data where the test put them, its SQL in SQLite's dialect, and no patience."""
    text = re.sub(r'"(?:file://)?/data/', f'"{home}/data/', text)
    text = text.replace("s3://lake/", f"{home}/lake/")
    if "poll_interval" not in text:  # a minute is for the real service
        text = re.sub(r"\b(GeminiBatch\w*Operator(?:\.partial)?\()", r"\1poll_interval=0.1, ", text)
    return text.replace("%(day)s", ":day")


IN_A_DAG = """\
import pendulum
from airflow.sdk import DAG

with DAG("{name}", schedule=None, start_date=pendulum.datetime(2026, 11, 1, tz="UTC")) as dag:
{body}
"""


@pytest.fixture(scope="session")
def airflow_database() -> None:
    from airflow.utils.db import initdb

    initdb()


@blocks("python")
def test_a_python_block_does_what_the_page_says(
    block: Block, airflow_database: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (since := block.told.get("since")) and version("apache-airflow-core").split(".") < since.split("."):
        pytest.skip(f"needs Airflow {since}")
    if needed := block.told.get("needs"):
        pytest.importorskip(needed)
    lay_out(tmp_path)
    monkeypatch.setenv(
        "AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(tmp_path / "warehouse.db")})
    )
    with Emulator(
        job_seconds=0, faults=Faults.from_dict(block.told.get("faults", {})),
        options=Options.from_dict(block.told.get("options", {})),
    ) as gemini:  # fmt: skip
        point_at(gemini.url, monkeypatch)
        monkeypatch.setenv("GEMINI_EMULATOR", gemini.url)
        name = "docs_" + re.sub(r"\W", "_", str(block))
        text = here(block.text, tmp_path)
        operators = re.search(r"(?:Operator|Sensor)(?:\.partial)?\(|@task\.\w+_batch\(", text)
        if operators and not re.search(r"\bDAG\(|@dag\b", text):
            text = IN_A_DAG.format(name=name, body=textwrap.indent(text, "    "))
        module = run_module(name, text, monkeypatch)
        tests = [value for name, value in vars(module).items() if name.startswith("test_")]
        for test in tests:
            test(monkeypatch)
        if operators and not tests:
            run_dags(module, block.told.get("state", "success"))
        if operators:
            check_what_landed(tmp_path, block.told.get("counts"))


def run_module(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = HOME / "dags" / f"{name}.py"  # dag.test() wants the file inside the DAGs folder
    for other in path.parent.glob("*.py"):
        other.unlink()  # Airflow 3.1 reads the whole folder, and two may have a DAG of the same name
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)  # as Airflow does; Pydantic looks types up there
    spec.loader.exec_module(module)
    return module


def run_dags(module: Any, state: str) -> None:
    """Run the module's DAGs in the order in which they were defined."""
    import pendulum
    from airflow.api.common.delete_dag import delete_dag
    from airflow.exceptions import DagNotFound
    from airflow.sdk import DAG

    dags = [value for value in vars(module).values() if isinstance(value, DAG)]
    if not dags:  # defined by a ``with DAG(...):`` that gives it no name
        dags = _dags_in(Path(module.__file__))
    assert dags
    for dag in dags:
        with suppress(DagNotFound):
            delete_dag(dag.dag_id)  # what dag.test() remembers of another page's of the same name
        ended = dag.test(logical_date=pendulum.parse(DAY))
        assert str(getattr(ended.state, "value", ended.state)) == state


def _dags_in(path: Path) -> list[Any]:
    """As the DAG processor finds them."""
    try:
        from airflow.dag_processing.dagbag import DagBag
    except ImportError:  # before 3.2
        from airflow.models.dagbag import DagBag  # type: ignore[no-redef, attr-defined]
    bag = DagBag(dag_folder=path)
    assert not bag.import_errors
    return list(bag.dags.values())


def check_what_landed(home: Path, expected: dict[str, int] | None) -> None:
    import pyarrow.parquet as pq

    counts: Counter[str] = Counter()
    for path in home.glob("**/_gemini_batch/manifest.json"):
        manifest = json.loads(path.read_bytes())
        if manifest["file_format"] == "parquet":
            landed = sum(pq.read_metadata(name).num_rows for name in manifest["files"])
            assert landed == manifest["rows"] == sum(manifest["counts"].values())
        counts += Counter(manifest["counts"])
    if expected is None:
        assert counts.keys() == {"ok"}
    else:
        assert dict(counts) == expected


# Everything else --------------------------------------------------------------------------------------------


@blocks("json")
def test_a_json_block_parses(block: Block) -> None:
    json.loads(block.text)


@blocks("ini")
def test_a_cfg_block_sets_options_of_airflow(block: Block) -> None:
    from airflow.configuration import conf
    from airflow.providers_manager import ProvidersManager

    ProvidersManager().initialize_providers_configuration()  # Airflow 3.1's command line does it
    given = configparser.ConfigParser()
    given.read_string(block.text)
    for section in given.sections():
        for option in given.options(section):
            assert conf.has_option(section, option), f"[{section}] {option}"


@blocks("bash")
def test_the_commands_of_a_block_exist(block: Block) -> None:
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.partition("  #")[0])
        if words and words[0] == "export":
            words = words[1:]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
            name, _, value = words.pop(0).partition("=")
            if name.startswith("AIRFLOW_CONN_"):
                json.loads(value)
            if name.startswith("RECEIVER_"):
                assert f"    {name.removeprefix('RECEIVER_').lower()}: str" in RECEIVER
        if words:
            COMMANDS[words[0]](words[1:])


RECEIVER = (ROOT / "example_dags" / "webhook_receiver.py").read_text()


def _make(words: list[str]) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in words if "=" not in word} <= targets


def _airflow(words: list[str]) -> None:
    from airflow.cli import cli_parser

    cli_parser.get_parser().parse_args(words)


def _python(words: list[str]) -> None:
    assert words[0] == "-m"
    help_text = _help_of(words[1])
    for option in (word for word in words[2:] if word.startswith("--")):
        assert f"{option} " in help_text, option


@cache
def _help_of(module: str) -> str:
    return subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True).stdout


def _pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words[1:]:
        if match := re.match(r"airflow-gemini-batch(?:\[(.*)\])?$", word):
            extras = set(filter(None, (match[1] or "").split(",")))
            assert extras <= project["optional-dependencies"].keys()


def _bash(words: list[str]) -> None:
    assert (ROOT / words[0]).exists()


def _uvicorn(words: list[str]) -> None:
    module, _, name = next(word for word in words if ":" in word).partition(":")
    assert f"def {name}(" in (ROOT / "example_dags" / f"{module}.py").read_text()


COMMANDS = {"uvicorn": _uvicorn, "make": _make, "airflow": _airflow, "python": _python, "pip": _pip, "bash": _bash}


def test_every_block_says_of_what_kind_it_is() -> None:
    kinds = {block.kind for page in PAGES for block in _blocks_of(page)}
    assert kinds <= {"python", "json", "ini", "bash", "text"}


# Links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        assert not anchor or anchor in _anchors(path), target


def _anchors(page: Path) -> set[str]:
    """As GitHub and MkDocs make them of headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_table_of_contents() -> None:
    docs = ROOT / "docs"
    pages = {str(page.relative_to(docs)) for page in docs.glob("**/*.md")} - {"index.md"}
    listed = set(re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "index.md").read_text()))
    in_nav = set(re.findall(r"([\w/-]+\.md)", (ROOT / "mkdocs.yml").read_text())) - {"index.md"}
    assert listed == pages
    assert in_nav == pages


def test_every_example_is_in_the_table_of_contents() -> None:
    named = set(re.findall(r"`(example_\w+)\.py`", (ROOT / "docs" / "index.md").read_text()))
    assert named == {path.stem for path in (ROOT / "example_dags").glob("example_*.py")}


# Tables -----------------------------------------------------------------------------------------------------


def _first_columns(page: str, heading: str) -> list[list[str]]:
    """The first two cells of each line of the table that begins so."""
    table = (ROOT / "docs" / page).read_text().partition(heading)[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.split("|")[1:3]] for line in table.splitlines()[2:]]


def test_every_field_of_the_manifest_is_told() -> None:
    from airflow_gemini_batch.core.manifest import Manifest

    told = {
        name for cell, _ in _first_columns("monitoring.md", "| field | meaning |") for name in re.findall(r"\w+", cell)
    }
    kept = {one.name for one in fields(Manifest)} - {"news"}
    assert told == kept | {"files_count", "jobs_count"}


def test_the_limits_are_told_with_their_defaults() -> None:
    from airflow_gemini_batch import Limits

    told = {name.strip("`"): default for name, default in _first_columns("quotas.md", "| `Limits(...)` |")}
    values = {one.name: getattr(Limits(), one.name) for one in fields(Limits)}
    assert told == {name: "none" if value is None else f"{value:,}" for name, value in values.items()}


def test_the_configuration_is_told_with_its_defaults() -> None:
    from airflow_gemini_batch.settings import CONFIG

    told = {name.strip("`"): default.strip("`") for name, default in _first_columns("configuration.md", "| option |")}
    assert told == {name: option["default"] for name, option in CONFIG["gemini_batch"]["options"].items()}


def test_every_error_of_the_table_is_of_that_kind() -> None:
    from airflow_gemini_batch import exceptions

    for kind, examples in _first_columns("errors.md", "| kind | examples |"):
        named = [getattr(exceptions, name) for name in re.findall(r"`(\w+)`", examples)]
        assert named
        if base := re.match(r"`(\w+)`", kind):
            assert all(issubclass(one, getattr(exceptions, base[1])) and not one.retryable for one in named)
        else:
            assert all(one.retryable for one in named)
