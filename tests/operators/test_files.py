"""Get, list and delete files, against the emulator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

from airflow_gemini_batch.emulator import Emulator
from airflow_gemini_batch.exceptions import InvalidConfig, NoSuchFile
from airflow_gemini_batch.operators.files import (
    GeminiDeleteFileOperator,
    GeminiGetFileOperator,
    GeminiListFilesOperator,
)
from airflow_gemini_batch.operators.steps import GeminiUploadFileOperator

from ..conftest import run_operator


def do(kind: Any, **settings: Any) -> Any:
    return run_operator(kind(task_id="t", **settings))


@pytest.fixture
def uploaded(connection: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    return do(GeminiUploadFileOperator, source=str(tmp_path / "a.png"))


def theirs(emulator: Emulator, path: Path) -> str:
    from google import genai

    client = genai.Client(api_key="any", http_options={"base_url": emulator.url})
    return str(client.files.upload(file=path, config={"mime_type": "image/png"}).name)


def test_a_file_is_told_by_its_name_or_by_what_the_upload_returned(uploaded: dict[str, Any]) -> None:
    told = do(GeminiGetFileOperator, file=uploaded["name"])
    assert (told["name"], told["uri"], told["state"], told["error"]) == (
        uploaded["name"], uploaded["uri"], "ACTIVE", None,
    )  # fmt: skip
    assert (told["size"], told["sha256"], told["expires_at"]) == (4, uploaded["sha256"], uploaded["expires_at"])
    assert do(GeminiGetFileOperator, file=[uploaded]) == [told]


def test_a_file_that_is_not_there_is_an_error_unless_it_may_be(connection: str, emulator: Emulator) -> None:
    with pytest.raises(NoSuchFile, match="files/gone is not at the service") as caught:
        do(GeminiGetFileOperator, file="files/gone")
    assert isinstance(caught.value, AirflowFailException)
    assert do(GeminiGetFileOperator, file="files/gone", missing_ok=True) == {"name": "files/gone", "state": "GONE"}


def test_a_delete_may_be_repeated(uploaded: dict[str, Any], emulator: Emulator) -> None:
    for _ in range(2):
        assert do(GeminiDeleteFileOperator, file=uploaded) == uploaded["name"]
    assert emulator.files == []
    assert do(GeminiDeleteFileOperator, file=[uploaded["name"]]) == [uploaded["name"]]


def test_the_list_has_every_file_or_those_that_are_asked_for(
    uploaded: dict[str, Any], emulator: Emulator, tmp_path: Path
) -> None:
    other = theirs(emulator, tmp_path / "a.png")
    assert [one["name"] for one in do(GeminiListFilesOperator)] == [other, uploaded["name"]]
    (ours,) = do(GeminiListFilesOperator, ours_only=True)
    assert (ours["name"], ours["size"], ours["display_name"][-5:]) == (uploaded["name"], 4, "a.png")
    assert do(GeminiListFilesOperator, older_than=60) == []
    assert len(do(GeminiListFilesOperator, newer_than="60", limit=1)) == 1


@pytest.mark.parametrize(
    "file", [None, "", [], "files/", "a.png", 5, {"job": "batches/x"}, ["files/a", None]], ids=repr
)
def test_what_is_no_file_is_refused_when_the_dag_file_is_read(file: Any) -> None:
    for kind in (GeminiGetFileOperator, GeminiDeleteFileOperator):
        with pytest.raises(InvalidConfig, match=r"^file is .* it takes the name of a file"):
            kind(task_id="t", file=file)
