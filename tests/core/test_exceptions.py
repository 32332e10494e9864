from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException

import airflow_gemini_batch.core
from airflow_gemini_batch import exceptions
from airflow_gemini_batch.exceptions import DuplicateKey, GeminiBatchError, RequestRefused, RunFailed
from airflow_gemini_batch.failures import failing_fast

ERRORS = [kind for _, kind in inspect.getmembers(exceptions, inspect.isclass) if issubclass(kind, BaseException)]
RETRYABLE = {
    "StateUnreadable", "MediaUnreadable", "ServiceUnreachable", "QuotaExceeded", "CreateInDoubt", "DownloadBroken",
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
            ours = kind.__module__.startswith("airflow_gemini_batch") and not kind.__name__.startswith("_")
            if issubclass(kind, Exception) and ours:
                assert issubclass(kind, GeminiBatchError), kind


def test_an_input_error_is_final_because_only_a_person_can_mend_it():
    assert not any(error.retryable for error in ERRORS if issubclass(error, exceptions.InvalidInput))


def test_an_output_that_cannot_be_written_is_not_taken_for_a_mistake_found_before_anything_was_paid():
    assert not issubclass(exceptions.OutputNotWritable, exceptions.InvalidInput)


def test_other_packages_know_a_job_that_is_not_there_by_its_code():
    assert exceptions.NoSuchJob("no").status_code == 404


def test_errors_keep_their_facts():
    duplicate = DuplicateKey(key="a", first="x.csv:2", second="x.csv:9")
    assert (duplicate.key, duplicate.first, duplicate.second, duplicate.where) == ("a", "x.csv:2", "x.csv:9", "x.csv:9")
    assert "x.csv:9: the key 'a' was used before, at x.csv:2" in str(duplicate)
    refused = RequestRefused("no", code=400, status="INVALID_ARGUMENT")
    assert (refused.code, refused.status) == (400, "INVALID_ARGUMENT")


FACTS: dict[str, Any] = {
    "key": "a", "first": "x.csv:2", "second": "x.csv:9", "where": "x.csv:2", "problem": "no", "message": "Oh no.",
    "jobs": ("batches/x",), "counts": {"ok": 1}, "manifest": "/m", "job": "batches/x", "state": "FAILED", "phase": "create",
    "quota": "requests", "code": 400,
}  # fmt: skip


def made(kind: type[GeminiBatchError]) -> GeminiBatchError:
    if kind.__init__ in (Exception.__init__, ValueError.__init__):
        return kind("Oh no.")
    asked = [one for one in inspect.signature(kind).parameters.values() if one.default is one.empty]
    return kind(
        *(FACTS[one.name] for one in asked if one.kind is one.POSITIONAL_OR_KEYWORD),
        **{one.name: FACTS[one.name] for one in asked if one.kind is one.KEYWORD_ONLY},
    )


@pytest.mark.parametrize("kind", ERRORS, ids=lambda error: error.__name__)
@pytest.mark.parametrize("final", [False, True])
def test_an_error_can_be_copied_and_sent_to_another_process_with_its_facts(kind, final):
    """Callbacks hand ``context["exception"]`` to queues, process pools and error reporters."""
    error = made(kind)
    if final and not kind.retryable:
        with pytest.raises(AirflowFailException) as caught, failing_fast():
            raise error
        error = caught.value  # type: ignore[assignment]
    for twin in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert isinstance(twin, kind)
        assert isinstance(twin, AirflowFailException) is isinstance(error, AirflowFailException)
        assert (str(twin), twin.__dict__) == (str(error), error.__dict__)


@pytest.mark.parametrize("error", [e for e in ERRORS if issubclass(e, RunFailed)], ids=lambda error: error.__name__)
def test_a_failed_run_tells_rows_and_where_they_landed(error):
    failed = error("Job x.", jobs=("batches/x",), counts={"ok": 2, "error": 1, "empty": 0}, manifest="/out/m.json")
    assert str(failed) == "Job x. Rows: ok 2, error 1. What there is was landed: /out/m.json"
    assert (failed.jobs, failed.counts, failed.manifest) == (
        ("batches/x",), {"ok": 2, "error": 1, "empty": 0}, "/out/m.json",
    )  # fmt: skip
