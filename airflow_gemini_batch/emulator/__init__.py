"""
A local Gemini Files and Batch service for demos, tests and benchmarks: no key, no network.

It copies what clients of the Gemini Developer API see on the wire: paths, both spellings of every field, the shape of
operations, files and errors, resumable uploads, the check of input files at create, results as lines or inline, expiry
and quotas. It shares no code with the rest of the package, so that one misreading cannot hide in both.

It cannot prove that the real service behaves the same. Its answers are made up by rule and say nothing about quality,
cost or latency. Speed limits are not enforced, nor enqueued-token quotas unless :class:`Options` sets them; field masks
are ignored, cached contents are taken on trust. Where the real behaviour is not known for sure,
:class:`Options` has a choice.
"""

from airflow_gemini_batch.emulator.faults import Faults, FaultsError, HttpError, RowError, Truncation
from airflow_gemini_batch.emulator.jobs import JobView
from airflow_gemini_batch.emulator.options import Options
from airflow_gemini_batch.emulator.server import Emulator
from airflow_gemini_batch.emulator.service import RequestSeen

__all__ = [
    "Emulator",
    "Faults",
    "FaultsError",
    "HttpError",
    "JobView",
    "Options",
    "RequestSeen",
    "RowError",
    "Truncation",
]
