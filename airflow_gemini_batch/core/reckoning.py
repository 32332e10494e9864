"""What a source would use and cost: its requests are built, counted and forgotten. Writes nothing, pays nothing."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_gemini_batch.core.attempt import Run, Services, estimator_of, log
from airflow_gemini_batch.core.estimate import Estimate, Scale, sample_count_tokens
from airflow_gemini_batch.core.measuring import Measure
from airflow_gemini_batch.core.requests import Request, RequestBuilder
from airflow_gemini_batch.core.rows import read_rows
from airflow_gemini_batch.exceptions import InvalidConfig

PROBE = b'{"key":"0","request":{"contents":[{"parts":[{"text":"a"}]}]}}'
"""A request that shows whether a model has a price."""


def estimate_source(run: Run, services: Services) -> Estimate:
    """
    Reckon all requests of a source.

    :raises InvalidInput: the source or the settings cannot be used.
    :raises ServiceError: the API was to count a sample, and did not.
    """
    estimator = estimator_of(run.policy, run.spec.model, services.clock(), count_sample(run, services))
    measured = Measure(estimator, exact=True)
    for request in _requests(run):
        measured.add(request.line)
    return measured.shard()


def count_sample(run: Run, services: Services) -> Scale | None:
    """
    Let the API count a sample of the source, if that is asked for; the source is read once more for it.

    Requests with media that are not at the service yet are left out: it could not open them.
    """
    most = run.policy.count_tokens
    if not most:
        return None
    if run.spec.embeddings:
        raise InvalidConfig("count_tokens is for generated answers; leave it out for embeddings.")
    estimator = estimator_of(run.policy, run.spec.model, services.clock())
    lines = (request.line for request in _requests(run) if not request.media)
    scale = sample_count_tokens(services.client, run.spec.model, lines, estimator, most=most)
    log.info("The API counts %s input tokens in a sample of %s requests, %s were expected", scale.counted, scale.requests,
             scale.guessed)  # fmt: skip
    return scale if scale.requests else None


def _requests(run: Run) -> Iterator[Request]:
    builder = RequestBuilder(run.spec, max_bytes=run.policy.limits.bytes_per_request)
    for row in read_rows(run.source(), builder.needed):
        for request in builder.build(row):
            if request.line:
                yield request
