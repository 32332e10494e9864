"""Deciding what to send: find the plan in force or make one."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import orjson

from airflow_gemini_batch.core import media, storage
from airflow_gemini_batch.core.ahead import release_reserves
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, estimator_of, log, measure, utc
from airflow_gemini_batch.core.blocks import Block, build_ahead, kept_columns
from airflow_gemini_batch.core.columns import SeenTypes
from airflow_gemini_batch.core.estimate import Estimate, Scale
from airflow_gemini_batch.core.gates import cut
from airflow_gemini_batch.core.jobs import Job
from airflow_gemini_batch.core.kinds import MIXED
from airflow_gemini_batch.core.landing import FORMATS
from airflow_gemini_batch.core.layout import OutputDirectory, WorkDirectory
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.names import Slot, wire_key
from airflow_gemini_batch.core.parquet import RowBatch
from airflow_gemini_batch.core.plan import Plan, Round, Shard, digest
from airflow_gemini_batch.core.reckoning import PROBE, count_sample
from airflow_gemini_batch.core.requests import EMBEDDING_SETTINGS, RequestBuilder
from airflow_gemini_batch.core.rows import Row, read_rows, read_source, rows_of
from airflow_gemini_batch.core.shards import KeyCheck, Piece, read_rows_file, write_shards
from airflow_gemini_batch.core.spelling import snake
from airflow_gemini_batch.core.submitting import resolve
from airflow_gemini_batch.core.table import Table
from airflow_gemini_batch.core.wording import counted
from airflow_gemini_batch.exceptions import (
    DuplicateKey,
    GeminiBatchError,
    NoRows,
    OutputTaken,
    OverBudget,
    ServiceError,
    SettingsChanged,
)


def find_or_make_plan(run: Run, services: Services, *, starting: bool) -> Plan:
    """
    Return the plan in force for this run, making one if there is none, or if a new one is asked for.

    :param starting: False after a wait: Airflow renders templates anew for each segment of a task, and one that says
        something else each time must not replace the plan that the wait was for.
    :raises OutputTaken: the output belongs to another run that has not finished.
    :raises SettingsChanged: they changed, and ``on_changed="fail"``.
    :raises InvalidInput: the source or the settings cannot be used; nothing was sent.
    """
    while True:
        plan = Plan.current(run.output)
        if plan is not None and ((plan.run == run.id and not starting) or not _to_be_replaced(run, plan)):
            return plan
        made = (run.planner or make_plan)(run, services, plan.number + 1 if plan else 1)
        if made.commit(run.output):
            log.info(
                "Planned %s in %s for %s: %s",
                counted(made.rows, "row"),
                counted(_shard_count(run, made), "job"),
                run.id,
                run.output.path,
            )
            return made
        log.info("Another attempt made a plan at the same time; its plan is used")
        discard(run.output.work(made.work))


def _shard_count(run: Run, plan: Plan) -> int:
    first = Round.load(run.output.work(plan.work), 0)
    return len(first.shards) if first else 0


def _to_be_replaced(run: Run, plan: Plan) -> bool:
    if plan.run != run.id:
        if (plan.run.dag_id, plan.run.run_id) == (run.id.dag_id, run.id.run_id):
            raise OutputTaken(
                f"{run.output.path} belongs to {plan.run}: two tasks of one run cannot share an output. Put the task's name, "
                "or {{ ti.map_index }} for a mapped task, into it."
            )
        if finished(run.output, plan) is None:
            raise OutputTaken(
                f"{run.output.path} belongs to {plan.run}, planned at {plan.created_at}, which has not finished. Give each "
                "run an output of its own, e.g. with {{ run_id }} or {{ ds }} in it, or let that run finish; remove the "
                "directory only if its jobs may be paid for in vain."
            )
        log.warning("The output %s holds the finished results of %s; this run replaces them", run.output.path, plan.run)
        return True
    if run.policy.reuse == "never" and not _same_clear(run, plan):
        log.info('reuse="never": plan %s is replaced, everything is asked anew and paid anew', plan.number)
        return True
    wanted = run.spec.to_dict()
    retyped = [f"type of {name}" for name, kind in run.spec.types.items() if plan.keep_types.get(name, kind) != kind]
    if plan.digest == digest(wanted) and not retyped:
        return False
    changed = ", ".join(sorted({*changed_settings(wanted, plan.spec), *retyped}))
    if run.policy.on_changed == "fail":
        raise SettingsChanged(
            f"The settings of {run.id} changed since it was planned at {plan.created_at}: {changed}. Set on_changed to "
            '"resubmit" (cancel what runs, ask everything anew, pay anew) or "keep" (finish with the old settings).'
        )
    log.warning('The settings changed (%s); on_changed="%s"', changed, run.policy.on_changed)
    return run.policy.on_changed == "resubmit"


CALLED = EMBEDDING_SETTINGS | {
    "system_instruction": "system_instruction", "label": "display_name", "fields": "priority or webhook_config",
    "file": "requests", "inline": "requests", "names": "job",
}  # fmt: skip
"""Parts of a spec → what the user calls them; the other parts are of the config."""


def changed_settings(wanted: Mapping[str, Any], planned: Mapping[str, Any]) -> Iterator[str]:
    """What the user calls the settings in which two specs differ."""
    for name in _differ(wanted, planned):
        if name in ("template", "per_row", "job"):
            for part in _differ(wanted.get(name) or {}, planned.get(name) or {}):
                # A new schema is in the config, too, where the user has not put it.
                if part != "generationConfig" or wanted.get("output_schema") == planned.get("output_schema"):
                    yield CALLED.get(snake(part), "config")
        else:
            yield "text" if name == "prompt" and wanted["embeddings"] else name


def _differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [name for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def finished(output: OutputDirectory, plan: Plan) -> Manifest | None:
    """Return the manifest if the plan's run is over. One with fewer rounds than there are was overtaken by a new round."""
    manifest = Manifest.load(output)
    if manifest is None or manifest.plan != plan.number:
        return None
    return manifest if manifest.rounds == len(Round.load_all(output.work(plan.work))) else None


def _same_clear(run: Run, plan: Plan) -> bool:
    """
    True when the plan was made since the task was last cleared: then this is a retry, which never pays again.

    Airflow raises ``max_tries`` when it clears a finished or deferred task. Clearing a running one does not, so the
    attempt that is killed by it leaves a note.
    """
    return plan.clears == run.clears and storage.read(run.output.work(plan.work).cleared) is None


def name_of_work(services: Services) -> str:
    """A name for a plan's work directory: no two plans have the same."""
    return f"{utc(services.clock()).replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"


def make_plan(run: Run, services: Services, number: int) -> Plan:
    """
    Turn the source's rows into request shards. The plan is not yet in force.

    :raises InvalidInput: the source or the settings cannot be used.
    """
    name = name_of_work(services)
    work = run.output.work(name)
    builder = RequestBuilder(run.spec, max_bytes=run.policy.limits.bytes_per_request)
    # Before a long source is read, and again when it told what the kept columns hold.
    _check_table(run, dict.fromkeys(run.spec.keep, MIXED) | dict(run.spec.types), media=builder.asks_for_media)
    if builder.same_for_all:
        log.warning("The %s names no {column}: every row asks the same", run.spec.asks)
    if run.schema is not None and run.schema.checked_only:
        log.info("Checked when answers land, but not asked for: %s", ", ".join(run.schema.checked_only))
    keys, types = KeyCheck(), SeenTypes(run.spec.keep, run.spec.types)
    # A canary, a budget and a limit of tokens count single requests.
    one_each = run.policy.canary or run.policy.budget or run.policy.limits.enqueued_tokens
    frame = None if one_each else builder.frame

    def one_by_one(rows: Iterable[Row], add: Callable[[Mapping[str, Any]], None]) -> Iterator[Piece]:
        for row in rows:
            for request in builder.build(row):
                keys.add(wire_key({"key": request.key, "prompt": request.prompt}))
                yield request, row.where
            add(request.keep)

    def requests() -> Iterator[Piece]:
        rows = read_source(run.source(), builder.needed)
        for piece in build_ahead(rows, frame) if frame else rows:
            if isinstance(piece, Block):
                keys.add(*piece.keys.to_pylist())
                types.add_columns(piece.kept, piece.declared)
                yield piece
            elif isinstance(piece, RowBatch):
                yield from one_by_one(rows_of(piece), lambda values: None)
                types.add_columns(*kept_columns(piece, run.spec.keep))
            else:
                yield from one_by_one((piece,), types.add)
        builder.left_out.tell()

    try:
        scale = count_sample(run, services)
        measured = measure(run.policy, run.spec.model, services.clock(), scale)
        shards = write_shards(_cut(run, requests(), services, scale), work, 0, run.policy.limits, measure=measured)
        if suspects := keys.suspects():
            _refuse_duplicates(run, builder, work, shards, suspects)
        _check_table(run, types.types(), media=builder.asks_for_media)
        rows = sum(shard.rows for shard in shards)
        if rows == 0 and run.policy.on_empty != "succeed":
            raise NoRows(f"The source of {run.id} has no rows.")
        _check_budget(run, shards, services.clock())
    except GeminiBatchError:
        discard(work)
        raise
    release_reserves()  # of reading the source, before results come
    Round(0, run.policy.max_rounds - 1, shards, canary=run.policy.canary).commit(work)
    return Plan(
        number, name, run.id, run.spec.to_dict(), rows, types.types(), utc(services.clock()), run.clears,
        builder.asks_for_media, scale, tuple(builder.caches),
    )  # fmt: skip


def _cut(run: Run, requests: Iterable[Piece], services: Services, scale: Scale | None) -> Iterator[Piece]:
    """Begin another job after the canary, and where a budget that leaves rows out has no room for the next one."""
    canary, budget = run.policy.canary, run.policy.budget
    if budget is None or budget.on_exceed != "truncate_rows":
        budget = None
    if not canary and budget is None:
        yield from requests
        return
    estimator = estimator_of(run.policy, run.spec.model, services.clock(), scale)
    room = budget.filling(run.spec.model) if budget else None
    yield from cut(requests, canary, (lambda line: room.take(estimator.request(line))) if room else None)


def _check_budget(run: Run, shards: tuple[Shard, ...], now: float) -> None:
    """
    :raises OverBudget: the plan does not fit, and its end is not to be left out; see ``Budget``.
    :raises InvalidConfig: the price of a model that may be asked is not known.
    """
    budget = run.policy.budget
    estimate = sum((shard.estimate for shard in shards), Estimate())
    log.info("To be sent: %s", estimate)
    if budget is not None:
        if budget.max_cost_usd is not None:
            for model in run.spec.fallbacks:  # not only when it is their turn, and others are paid
                budget.known(estimator_of(run.policy, model, now).estimate([PROBE]).pico_usd, model)
        try:
            budget.check(estimate)
        except OverBudget:
            if budget.on_exceed != "truncate_rows":
                raise
            budget.check(next(shard.estimate for shard in shards if shard.requests))  # or there is nothing to do


def _check_table(run: Run, keep: Mapping[str, str], *, media: bool) -> None:
    """:raises InvalidConfig: two columns of the table would have the same name, or a database would not take it."""
    policy = run.policy
    table = Table.of(
        run.spec.to_dict(), keep, media=media, schema=run.schema, include=policy.include, raw=policy.include_raw
    )
    if run.loader is not None:
        run.loader.check(table.kinds)


def _refuse_duplicates(
    run: Run, builder: RequestBuilder, work: WorkDirectory, shards: tuple[Shard, ...], suspects: set[int]
) -> None:
    """:raises DuplicateKey: two of the rows just written have the same key; equal hashes alone are no duplicate."""
    numbers: dict[str, int] = {}
    rows = (row for shard in shards for row in read_rows_file(shard.rows_in(work)))
    for number, row in enumerate(rows):
        key = wire_key(row)
        if hash(key) in suspects and numbers.setdefault(key, number) != number:
            # Only the source knows file and line. Should it have changed meanwhile, the rows' numbers must do.
            wanted = tuple(one // builder.per_source_row for one in (numbers[key], number))
            where = {one.number: one.where for one in read_rows(run.source(), builder.needed) if one.number in wanted}
            first, second = (where.get(one, f"row {one}") for one in wanted)
            known = {"advice": "give each request a key of its own"} if run.spec.job else {}
            raise DuplicateKey(key=row["key"], first=first, second=second, **known)


def discard(work: WorkDirectory) -> None:
    """Remove the shards of a plan that did not come into force."""
    index = 0
    while storage.read(work.rows(slot := Slot(0, index))) is not None:
        storage.remove(work.requests(slot))
        storage.remove(work.rows(slot))
        index += 1
    storage.remove(work.round(0))


def retire_older_plans(attempt: Attempt) -> None:
    """
    Cancel and remove what plans before this one left behind. Safe to repeat; done before anything of this plan is sent.

    The jobs of a replaced plan would otherwise run on and be billed, and its parts would stand among the new ones.
    """
    output = attempt.run.output
    for number in range(1, attempt.plan.number):
        old = Plan.at(output, number)
        if old is None:
            continue
        work = output.work(old.work)
        if storage.read(work.retired) is not None:
            continue
        theirs = replace(attempt, plan=old)
        for one in Round.load_all(work):
            for shard in one.shards:
                entry = theirs.ledger.read(shard.slot)
                # A create that was never recorded may have become a job all the same.
                job = resolve(theirs, shard, entry.doubtful) if entry.doubtful else entry.submitted
                if job and not entry.landed:
                    _cancel_if_running(attempt, job.job)
                upload = job.file if job else entry.upload.name if entry.upload else ""
                if upload and not entry.landed and attempt.run.policy.delete_remote != "never":
                    with suppress(ServiceError):  # it is removed in 48 hours anyway
                        attempt.client.delete_file(upload)
                for suffix in FORMATS:
                    storage.remove(output.part(shard.slot, suffix))
        for suffix in FORMATS:
            storage.remove(output.unsettled_part(suffix))
        media.remove(theirs, (shard for one in Round.load_all(work) for shard in one.shards))
        manifest = Manifest.load(output)
        if manifest is not None and manifest.plan == number:
            storage.remove(output.manifest)
        storage.publish(work.retired, orjson.dumps({"at": utc(attempt.now()), "by_plan": attempt.plan.number}))


def _cancel_if_running(attempt: Attempt, name: str) -> None:
    seen = attempt.client.look(name)
    if not isinstance(seen, Job) or not seen.phase.ended:
        log.warning("Cancelled, as its plan was replaced: %s", attempt.client.cancel(name))
