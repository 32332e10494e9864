"""What the package is from outside: what it imports, what Airflow discovers, what the wheel ships."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection
from pathlib import Path

import pytest

import airflow_gemini_batch
from airflow_gemini_batch.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "airflow_gemini_batch"
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{name.name}" for name in node.names}
    return found


def importers(of: str, among: Path = PACKAGE) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in sorted(among.rglob("*.py"))
        if any(name == of or name.startswith(f"{of}.") for name in imports_of(path))
    }


def test_the_core_knows_no_other_part_of_the_package() -> None:
    names = {name for path in (PACKAGE / "core").glob("*.py") for name in imports_of(path)}
    ours = {name for name in names if name.startswith("airflow_gemini_batch.")}
    others = {
        name for name in ours if not name.startswith(("airflow_gemini_batch.core", "airflow_gemini_batch.exceptions"))
    }
    assert others == set()


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports that run when a module is loaded; those within functions may go back."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    needs = {name: loaded_with(path, names) - {name} for name, path in names.items()}
    while free := {name for name, its in needs.items() if not its & needs.keys()}:
        needs = {name: its for name, its in needs.items() if name not in free}
    assert needs == {}


def loaded_with(path: Path, known: Collection[str]) -> set[str]:
    """The modules among ``known`` that must be loaded for this one."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [f"{node.module}.{one.name}" for one in node.names]
            found |= {one if one in known else node.module for one in modules}
    return found & set(known)


def test_the_map_of_the_core_names_every_module() -> None:
    text = (PACKAGE / "core" / "__init__.py").read_text()
    assert [path.stem for path in sorted((PACKAGE / "core").glob("[a-z]*.py")) if f"`{path.stem}" not in text] == []


def test_the_core_imports_no_airflow() -> None:
    assert importers("airflow", PACKAGE / "core") == set()


def test_only_one_core_module_talks_to_google_genai() -> None:
    assert importers("google") == {"core/client.py", "hooks/gemini.py"}
    # The hook names the type it returns, for type checkers only.
    assert "if TYPE_CHECKING:" in (PACKAGE / "hooks/gemini.py").read_text().split("from google import genai")[0]


def test_the_emulator_shares_no_code_with_the_rest() -> None:
    names = {name for path in (PACKAGE / "emulator").glob("*.py") for name in imports_of(path)}
    ours = {name for name in names if name.startswith("airflow_gemini_batch")}
    assert all(name.startswith("airflow_gemini_batch.emulator") for name in ours)
    assert not {path for path in MODULES if "emulator" not in path.parts and "emulator" in " ".join(imports_of(path))}


def test_a_dag_file_does_not_pay_for_the_sdk_or_arrow() -> None:
    heavy = {"google.genai", "pyarrow", "orjson", "genai_prices", "airflow_gemini_batch.core.flow"}
    code = (
        "import json, sys, airflow_gemini_batch as ours\n"
        f"print(json.dumps({{name: sorted({heavy} & sys.modules.keys()) for name in ours.__all__ if getattr(ours, name)}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == {name: [] for name in airflow_gemini_batch.__all__}, "the first name that has some loads them"


def test_the_public_names_are_there_when_asked_for() -> None:
    for name in airflow_gemini_batch.__all__:
        assert getattr(airflow_gemini_batch, name).__name__ == name
    with pytest.raises(AttributeError, match="nope"):
        _ = airflow_gemini_batch.nope


def test_the_provider_info_names_what_exists() -> None:
    import importlib

    info = get_provider_info()
    (connection,) = info["connection-types"]
    module, _, name = connection["hook-class-name"].rpartition(".")
    hook = getattr(importlib.import_module(module), name)
    assert (hook.conn_type, hook.hook_name) == (connection["connection-type"], connection["hook-name"])
    for name in [*info["extra-links"], *(one["class-name"] for one in info["task-decorators"])]:
        module, _, name = name.rpartition(".")
        assert hasattr(importlib.import_module(module), name)
    for kind in ("hooks", "operators", "sensors", "triggers"):
        for entry in info[kind]:
            for python_module in entry["python-modules"]:
                importlib.import_module(python_module)


def test_airflow_lists_the_provider_and_its_hook_without_a_complaint(tmp_path: Path) -> None:
    environment = os.environ | {"AIRFLOW_HOME": str(tmp_path), "COLUMNS": "300"}
    for command, expected in (
        ("list", "airflow-gemini-batch"),
        ("hooks", "airflow_gemini_batch.hooks.gemini.GeminiHook"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "airflow", "providers", command, "-v"],
            env=environment, capture_output=True, text=True, check=True, cwd=tmp_path,
        )  # fmt: skip
        assert expected in done.stdout
        complaints = [
            line for line in (done.stdout + done.stderr).splitlines() if "gemini" in line and "warn" in line.lower()
        ]
        assert complaints == []


def test_the_form_is_the_same_on_every_airflow() -> None:
    from airflow_gemini_batch.connection_form import FIELDS
    from airflow_gemini_batch.hooks.gemini import GeminiHook

    (connection,) = get_provider_info()["connection-types"]
    assert set(connection["conn-fields"]) == set(FIELDS)
    behaviour = GeminiHook.get_ui_field_behaviour()
    assert behaviour["relabeling"] == connection["ui-field-behaviour"]["relabeling"]
    assert behaviour["hidden_fields"] == connection["ui-field-behaviour"]["hidden-fields"]
    assert set(FIELDS) <= set(behaviour["placeholders"])


def test_the_wheel_ships_the_package_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(PACKAGE, source / "airflow_gemini_batch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)],
        check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(next(n for n in archive.namelist() if n.endswith("entry_points.txt"))).decode()
    assert shipped == {str(path.relative_to(ROOT)) for path in MODULES} | {"airflow_gemini_batch/py.typed"}
    assert "provider_info = airflow_gemini_batch.get_provider_info:get_provider_info" in entry_points


def test_no_file_names_a_path_of_a_machine() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    homes = re.compile(r"/(root|Users/\w+|home/\w+|work)/")
    texts = {name: (ROOT / name).read_text(errors="replace") for name in listed if (ROOT / name).is_file()}
    assert {name for name, text in texts.items() if homes.search(text)} <= {"tests/test_package.py"}
