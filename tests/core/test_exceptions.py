from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest

import airflow_gemini_batch.core
from airflow_gemini_batch import exceptions
from airflow_gemini_batch.exceptions import DuplicateKey, GeminiBatchError, RequestRefused, RunFailed

ERRORS = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, BaseException)]
RETRYABLE = {
    "StateUnreadable", "ServiceUnreachable", "QuotaExceeded", "CreateInDoubt", "DownloadBroken",
}  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_of_one_tree_and_says_what_it_is(error):
    assert issubclass(error, GeminiBatchError)
    assert error.__doc__


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_every_error_is_final_or_worth_a_retry(error):
    assert error.retryable is (error.__name__ in RETRYABLE)


def test_the_core_defines_no_errors_outside_the_tree():
    for module in pkgutil.iter_modules(airflow_gemini_batch.core.__path__, "airflow_gemini_batch.core."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Exception) and kind.__module__.startswith("airflow_gemini_batch"):
                assert issubclass(kind, GeminiBatchError), kind


def test_an_input_error_is_final_because_only_a_person_can_mend_it():
    assert not any(error.retryable for error in ERRORS if issubclass(error, exceptions.InvalidInput))


def test_errors_keep_their_facts():
    duplicate = DuplicateKey(key="a", first="x.csv:2", second="x.csv:9")
    assert (duplicate.key, duplicate.first, duplicate.second, duplicate.where) == ("a", "x.csv:2", "x.csv:9", "x.csv:9")
    assert "x.csv:9: the key 'a' was used before, at x.csv:2" in str(duplicate)
    refused = RequestRefused("no", code=400, status="INVALID_ARGUMENT")
    assert (refused.code, refused.status) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize("error", [e for e in ERRORS if issubclass(e, RunFailed)], ids=lambda error: error.__name__)
def test_a_failed_run_tells_rows_and_where_they_landed(error):
    failed = error("Job x.", jobs=("batches/x",), counts={"ok": 2, "error": 1, "empty": 0}, manifest="/out/m.json")
    assert str(failed) == "Job x. Rows: ok 2, error 1. What there is was landed: /out/m.json"
    assert (failed.jobs, failed.counts, failed.manifest) == (
        ("batches/x",), {"ok": 2, "error": 1, "empty": 0}, "/out/m.json",
    )  # fmt: skip
