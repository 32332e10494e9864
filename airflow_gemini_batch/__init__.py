"""Run Gemini's Batch API from Apache Airflow: paid once, nothing lost, in plain sight."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_gemini_batch.core.budget import Budget
    from airflow_gemini_batch.core.limits import Limits
    from airflow_gemini_batch.decorators.batch import gemini_batch
    from airflow_gemini_batch.hooks.gemini import GeminiHook
    from airflow_gemini_batch.operators.batch import GeminiBatchOperator
    from airflow_gemini_batch.operators.embeddings import GeminiBatchEmbeddingsOperator
    from airflow_gemini_batch.operators.estimate import GeminiEstimateCostOperator
    from airflow_gemini_batch.operators.files import (
        GeminiDeleteFileOperator,
        GeminiGetFileOperator,
        GeminiListFilesOperator,
    )
    from airflow_gemini_batch.operators.manage import (
        GeminiCancelBatchJobOperator,
        GeminiCleanUpFilesOperator,
        GeminiDeleteBatchJobOperator,
        GeminiGetBatchJobOperator,
        GeminiListBatchJobsOperator,
    )
    from airflow_gemini_batch.operators.steps import (
        GeminiCreateBatchJobOperator,
        GeminiCreateEmbeddingsBatchJobOperator,
        GeminiLandResultsOperator,
        GeminiPrepareRequestsOperator,
        GeminiUploadFileOperator,
    )
    from airflow_gemini_batch.sensors.batch import GeminiBatchJobSensor
    from airflow_gemini_batch.sql.query import SqlQuery
    from airflow_gemini_batch.sql.table import SqlTable
    from airflow_gemini_batch.triggers.batch import GeminiBatchTrigger

__version__ = "0.1.0"
__all__ = [
    "Budget",
    "GeminiBatchEmbeddingsOperator",
    "GeminiBatchJobSensor",
    "GeminiBatchOperator",
    "GeminiBatchTrigger",
    "GeminiCancelBatchJobOperator",
    "GeminiCleanUpFilesOperator",
    "GeminiCreateBatchJobOperator",
    "GeminiCreateEmbeddingsBatchJobOperator",
    "GeminiDeleteBatchJobOperator",
    "GeminiDeleteFileOperator",
    "GeminiEstimateCostOperator",
    "GeminiGetBatchJobOperator",
    "GeminiGetFileOperator",
    "GeminiHook",
    "GeminiLandResultsOperator",
    "GeminiListBatchJobsOperator",
    "GeminiListFilesOperator",
    "GeminiPrepareRequestsOperator",
    "GeminiUploadFileOperator",
    "Limits",
    "SqlQuery",
    "SqlTable",
    "gemini_batch",
]

_HOMES = {
    "Budget": "airflow_gemini_batch.core.budget",
    "GeminiBatchEmbeddingsOperator": "airflow_gemini_batch.operators.embeddings",
    "GeminiBatchJobSensor": "airflow_gemini_batch.sensors.batch",
    "GeminiBatchOperator": "airflow_gemini_batch.operators.batch",
    "GeminiBatchTrigger": "airflow_gemini_batch.triggers.batch",
    "GeminiEstimateCostOperator": "airflow_gemini_batch.operators.estimate",
    "GeminiCancelBatchJobOperator": "airflow_gemini_batch.operators.manage",
    "GeminiCleanUpFilesOperator": "airflow_gemini_batch.operators.manage",
    "GeminiCreateBatchJobOperator": "airflow_gemini_batch.operators.steps",
    "GeminiCreateEmbeddingsBatchJobOperator": "airflow_gemini_batch.operators.steps",
    "GeminiDeleteBatchJobOperator": "airflow_gemini_batch.operators.manage",
    "GeminiDeleteFileOperator": "airflow_gemini_batch.operators.files",
    "GeminiGetBatchJobOperator": "airflow_gemini_batch.operators.manage",
    "GeminiGetFileOperator": "airflow_gemini_batch.operators.files",
    "GeminiHook": "airflow_gemini_batch.hooks.gemini",
    "GeminiLandResultsOperator": "airflow_gemini_batch.operators.steps",
    "GeminiListBatchJobsOperator": "airflow_gemini_batch.operators.manage",
    "GeminiListFilesOperator": "airflow_gemini_batch.operators.files",
    "GeminiPrepareRequestsOperator": "airflow_gemini_batch.operators.steps",
    "GeminiUploadFileOperator": "airflow_gemini_batch.operators.steps",
    "Limits": "airflow_gemini_batch.core.limits",
    "SqlQuery": "airflow_gemini_batch.sql.query",
    "SqlTable": "airflow_gemini_batch.sql.table",
    "gemini_batch": "airflow_gemini_batch.decorators.batch",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is asked for: Airflow imports this package in every process it has."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
