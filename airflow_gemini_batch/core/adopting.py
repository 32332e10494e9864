"""
Any finished job becomes a landed run, whoever created it and however its requests came.

Its results are brought to storage and a plan is made of them, with the job already in the ledger; from there the flow
lands it like one of ours. Nothing is ever sent: ``planning.open_round`` sees to that.
"""

from __future__ import annotations

import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, BinaryIO, cast

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.answers import key_of, load
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, utc
from airflow_gemini_batch.core.collecting import Ending, bring
from airflow_gemini_batch.core.columns import SeenTypes
from airflow_gemini_batch.core.ends import check_succeeded, find, look_at, within
from airflow_gemini_batch.core.estimate import Estimate
from airflow_gemini_batch.core.flow import Waiting, advance
from airflow_gemini_batch.core.jobs import Job
from airflow_gemini_batch.core.ledger import Submitted
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.names import Slot, wire_key
from airflow_gemini_batch.core.plan import Plan, Round, Shard
from airflow_gemini_batch.core.planning import discard, name_of_work
from airflow_gemini_batch.core.requests import MEDIA_MODELS, Spec
from airflow_gemini_batch.core.shards import KeyCheck, read_rows_file
from airflow_gemini_batch.core.storage import StoragePath
from airflow_gemini_batch.core.waiting import Outcome
from airflow_gemini_batch.exceptions import DuplicateKey, GeminiBatchError, InvalidConfig, NoRows, SourceUnreadable

log = logging.getLogger("airflow_gemini_batch")

INLINE = ("response.inlinedResponses.inlinedResponses.item", "metadata.output.inlinedResponses.inlinedResponses.item")
"""Where an operation has its inlined responses; it has them twice, unless a server fills only one of the places."""


def land_jobs(
    run: Run,
    services: Services,
    *,
    rows: Sequence[StoragePath] = (),
    outcomes: Iterable[Outcome] = (),
    starting: bool = False,
) -> Waiting | Manifest:
    """
    Land jobs as one table; safe to repeat, as ``flow.advance`` is.

    :param run: its spec's ``job`` names the jobs; their model and kind are taken from the service.
    :param rows: a rows file for each job, or none at all: then every key of the results is a row.
    :raises NoSuchJob: a job is not there.
    :raises JobNotSucceeded: it ended without results, and there is no rows file to land its rows as failed.
    :raises GeminiBatchError: whatever landing raises.
    """
    names = run.spec.job["names"]
    if rows and len(rows) != len(names):
        raise InvalidConfig(f"There are {len(names)} jobs and {len(rows)} rows files; give one for each job, or none.")
    spec = _spec_in_force(run)
    if spec is None:
        ended, waits = look_at(services, names, until=within(run.policy.timeout, services), outcomes=outcomes or None)
        if waits:
            return Waiting(waits)
        spec = _spec_of(run.spec, ended, _plan_of_rows(rows))

    def planner(run: Run, services: Services, number: int) -> Plan:
        return _make_plan(run, services, number, rows)

    return advance(replace(run, spec=spec, planner=planner), services, outcomes=outcomes, starting=starting)


def _spec_in_force(run: Run) -> Spec | None:
    """The settings as learned from these jobs before: they may be deleted at the service since."""
    plan = Plan.current(run.output)
    if plan is None or plan.run != run.id or plan.job != run.spec.to_dict()["job"]:
        return None
    return replace(
        run.spec, model=plan.spec["model"], embeddings=plan.spec["embeddings"], prompt=plan.spec["prompt"],
        template=plan.spec["template"],
    )  # fmt: skip


def _spec_of(spec: Spec, jobs: list[Job], prepared: Plan | None) -> Spec:
    kinds = {(job.model, job.embeddings) for job in jobs}
    if len(kinds) > 1:
        told = "; ".join(f"{job.name}: {job.model}" for job in jobs)
        raise InvalidConfig(f"Jobs of several models or kinds cannot be one table; land them apart. {told}")
    ((model, embeddings),) = kinds
    theirs = prepared.spec if prepared else {}
    return replace(
        spec, model=model, embeddings=embeddings, prompt=theirs.get("prompt"), template=theirs.get("template", {})
    )


def _plan_of_rows(rows: Sequence[StoragePath]) -> Plan | None:
    """The plan that rows files were written under, if it is still there: it knows the types of the kept columns."""
    if not rows:
        return None
    work = rows[0].parent.parent
    number = 1
    while (plan := Plan.read(work.parent / f"plan-{number}.json")) is not None:
        if plan.work == work.name:
            return plan
        number += 1
    return None


def _make_plan(run: Run, services: Services, number: int, rows: Sequence[StoragePath]) -> Plan:
    names = run.spec.job["names"]
    prepared = _plan_of_rows(rows)
    keep = tuple(prepared.keep_types) if prepared else _kept(rows)
    types = SeenTypes(keep)
    media = any(sign in run.spec.model for sign in MEDIA_MODELS) or bool(prepared and prepared.media)
    plan = Plan(
        number, name_of_work(services), run.id, run.spec.to_dict(), 0, {}, utc(services.clock()), run.clears, media
    )
    attempt = Attempt(run, plan, services)
    keys, shards = KeyCheck(), []
    try:
        for index, name in enumerate(names):
            job = find(services.client, name)
            shards.append(_bring(attempt, Slot(0, index), job, rows[index] if rows else None, keys, types, keep))
        if suspects := keys.suspects():
            _refuse_duplicates(attempt, shards, suspects)
        count = sum(shard.rows for shard in shards)
        if count == 0 and run.policy.on_empty != "succeed":
            raise NoRows(f"{', '.join(names)}: the results hold no row.")
    except GeminiBatchError:
        discard(attempt.work)
        raise
    Round(0, 0, tuple(shards)).commit(attempt.work)
    return replace(plan, rows=count, keep_types=prepared.keep_types if prepared else types.types())


def _bring(
    attempt: Attempt, slot: Slot, job: Job, rows: StoragePath | None, keys: KeyCheck, types: SeenTypes,
    keep: tuple[str, ...],
) -> Shard:  # fmt: skip
    """Bring a job's results and rows to the work directory, and note the job in the ledger."""
    _fetch(attempt, slot, job)
    results = attempt.work.results(slot)
    if rows is None and not results.exists():
        check_succeeded([job])
    found = list(_keys(results)) if results.exists() else []
    named = [key for key in found if key is not None]
    sent = 0
    count = 0
    unnamed: list[str] = []
    with storage.writing(attempt.work.rows(slot)) as copy:
        for row in _read_rows(rows) if rows is not None else _rows_of(found):
            copy.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
            keys.add(wire_key(row))
            types.add(dict.fromkeys(keep) | (row.get("keep") or {}))
            count += 1
            if "unsent" not in row:
                sent += 1
                if not named:
                    unnamed.append(wire_key(row))
    if found and not named:
        _name_by_place(attempt, slot, job, unnamed, len(found))
    storage.publish(
        attempt.work.requests(slot), b""
    )  # whoever looks there for what was sent finds that it is not known
    created = job.created_at.timestamp() if job.created_at else attempt.now()
    attempt.ledger.submitted(slot, Submitted(job.name, job.model, job.input_file or "", created, adopted=True))
    return Shard(slot, sent, count, 0, "", estimate=Estimate(pico_usd=None))  # nobody has reckoned it


def _fetch(attempt: Attempt, slot: Slot, job: Job) -> None:
    """Results as lines on storage, from the result file or out of the job itself."""
    if job.results is not None or job.input_file is not None:
        submitted = Submitted(job.name, job.model, job.input_file or "", attempt.now())
        bring(attempt, Shard(slot, 0, 0, 0, ""), submitted, Ending.of(job))
        return
    with tempfile.TemporaryFile(prefix="gemini-batch-") as whole:
        attempt.client.download_job(job.name, cast("BinaryIO", whole))
        with storage.writing(attempt.work.results(slot), keep_empty=job.phase.value == "succeeded") as lines:
            for one in _inlined(cast("BinaryIO", whole)):
                lines.write(orjson.dumps(one, option=orjson.OPT_APPEND_NEWLINE))


def _inlined(operation: BinaryIO) -> Iterator[Mapping[str, Any]]:
    """The inlined responses of an operation, one at a time: with images they are gigabytes, and each is there twice."""
    import ijson  # type: ignore[import-untyped,import-not-found,unused-ignore]

    for place in INLINE:
        operation.seek(0, io.SEEK_SET)
        found = False
        for one in ijson.items(operation, place, use_float=True):
            found = True
            yield one
        if found:
            return


def _keys(results: StoragePath) -> Iterator[str | None]:
    """The key of each line that can be read, None where it has none."""
    with storage.local_copy(results) as lines:
        for line in lines:
            if (answer := _read(line)) is not None:
                try:
                    yield key_of(answer)
                except ValueError:
                    yield None


def _read(line: bytes) -> Mapping[str, Any] | None:
    """None for what is no answer: it is told and kept aside when the results are landed."""
    try:
        answer = load(line)
    except ValueError:
        return None
    return answer if isinstance(answer, Mapping) else None


def _rows_of(found: list[str | None]) -> Iterator[dict[str, Any]]:
    if any(key is not None for key in found):
        yield from ({"key": key} for key in dict.fromkeys(key for key in found if key is not None))
    else:
        yield from ({"key": str(place)} for place in range(len(found)))


def _name_by_place(attempt: Attempt, slot: Slot, job: Job, keys: list[str], found: int) -> None:
    """No result has a key: then its place is all there is to go by, if each request has a result."""
    if len(keys) != found:
        raise SourceUnreadable(
            f"The results of {job.name} have no keys, and {found} of them cannot be matched with {len(keys)} rows by their "
            "order. Land the job without rows."
        )
    log.warning("The results of %s have no keys; they are taken in their order", job.name)
    results = attempt.work.results(slot)
    with storage.local_copy(results) as lines, storage.writing(results) as named:
        remaining = iter(keys)
        for line in lines:
            answer = _read(line)
            body = line if answer is None else orjson.dumps({"key": next(remaining), **answer})
            named.write(body.rstrip(b"\r\n") + b"\n")


def _read_rows(path: StoragePath) -> Iterator[dict[str, Any]]:
    """:raises SourceUnreadable: it is not a rows file."""
    try:
        for number, row in enumerate(read_rows_file(path), 1):
            if not isinstance(row, dict) or not isinstance(row.get("key"), str):
                raise SourceUnreadable(
                    f'{path}:{number}: a line of a rows file is {{"key": "...", "keep": {{...}}}}; see the prepare step.'
                )
            yield row
    except FileNotFoundError as e:
        raise SourceUnreadable(f"{path} does not exist.") from e
    except orjson.JSONDecodeError as e:
        raise SourceUnreadable(f"{path} is not a rows file: {e}") from e


def _kept(rows: Sequence[StoragePath]) -> tuple[str, ...]:
    """Names of the kept columns; every row of a file has the same."""
    first = next((row for path in rows for row in _read_rows(path)), {})
    return tuple(first.get("keep", {}))


def _refuse_duplicates(attempt: Attempt, shards: list[Shard], suspects: set[int]) -> None:
    """:raises DuplicateKey: two jobs have a row under the same key, so they cannot be one table."""
    seen: dict[str, str] = {}
    for shard in shards:
        job = attempt.run.spec.job["names"][shard.slot.index]
        for number, row in enumerate(read_rows_file(shard.rows_in(attempt.work)), 1):
            key = wire_key(row)
            if hash(key) in suspects:
                where = f"{job}, row {number}"
                if (first := seen.setdefault(key, where)) != where:
                    advice = "land the jobs apart, each into an output of its own"
                    raise DuplicateKey(key=row["key"], first=first, second=where, advice=advice)
