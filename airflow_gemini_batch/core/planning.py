"""Deciding what to send: find the plan in force or make one; later, gather what is unsettled into another round."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import orjson

from airflow_gemini_batch.core import storage
from airflow_gemini_batch.core.attempt import Attempt, Run, Services, log, utc
from airflow_gemini_batch.core.columns import SeenTypes
from airflow_gemini_batch.core.jobs import Job
from airflow_gemini_batch.core.landing import FORMATS, check_keep
from airflow_gemini_batch.core.layout import OutputDirectory, WorkDirectory
from airflow_gemini_batch.core.manifest import Manifest
from airflow_gemini_batch.core.names import Slot
from airflow_gemini_batch.core.plan import Plan, Round, Shard, Taken, digest
from airflow_gemini_batch.core.requests import Request, RequestBuilder
from airflow_gemini_batch.core.rows import read_rows
from airflow_gemini_batch.core.shards import KeyCheck, read_rows_file, write_shards
from airflow_gemini_batch.core.submitting import resolve
from airflow_gemini_batch.exceptions import (
    DuplicateKey,
    GeminiBatchError,
    NoRows,
    OutputTaken,
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
        made = _make_plan(run, services, number=plan.number + 1 if plan else 1)
        if made.commit(run.output):
            log.info(
                "Planned %s rows in %s shards for %s: %s", made.rows, _shard_count(run, made), run.id, run.output.path
            )
            return made
        log.info("Another attempt made a plan at the same time; its plan is used")
        _discard(run.output.work(made.work))


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
    if plan.digest == digest(wanted):
        return False
    changed = ", ".join(
        sorted(name for name in wanted.keys() | plan.spec.keys() if wanted.get(name) != plan.spec.get(name))
    )
    if run.policy.on_changed == "fail":
        raise SettingsChanged(
            f"The settings of {run.id} changed since it was planned at {plan.created_at}: {changed}. Set on_changed to "
            '"resubmit" (cancel what runs, ask everything anew, pay anew) or "keep" (finish with the old settings).'
        )
    log.warning('The settings changed (%s); on_changed="%s"', changed, run.policy.on_changed)
    return run.policy.on_changed == "resubmit"


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


def _make_plan(run: Run, services: Services, *, number: int) -> Plan:
    check_keep(run.spec.keep, include_raw=run.policy.include_raw)
    name = f"{utc(services.clock()).replace(':', '').replace('-', '')}-{uuid.uuid4().hex[:8]}"
    work = run.output.work(name)
    builder = RequestBuilder(run.spec, max_bytes=run.policy.limits.bytes_per_request)
    if builder.same_for_all:
        log.warning("The prompt names no {column}: every row asks the same")
    keys, types = KeyCheck(), SeenTypes(run.spec.keep)

    def requests() -> Iterator[tuple[Request, str]]:
        for row in read_rows(run.source(), builder.needed):
            request = builder.build(row)
            keys.add(request.key)
            types.add(request.keep)
            yield request, row.where

    try:
        shards = write_shards(requests(), work, 0, run.policy.limits)
        if suspects := keys.suspects():
            _refuse_duplicates(run, builder, work, shards, suspects)
        rows = sum(shard.rows for shard in shards)
        if rows == 0 and run.policy.on_empty != "succeed":
            raise NoRows(f"The source of {run.id} has no rows.")
    except GeminiBatchError:
        _discard(work)
        raise
    Round(0, run.policy.max_rounds - 1, shards).commit(work)
    return Plan(number, name, run.id, run.spec.to_dict(), rows, types.types(), utc(services.clock()), run.clears)


def _refuse_duplicates(
    run: Run, builder: RequestBuilder, work: WorkDirectory, shards: tuple[Shard, ...], suspects: set[int]
) -> None:
    """:raises DuplicateKey: two of the rows just written have the same key; equal hashes alone are no duplicate."""
    numbers: dict[str, int] = {}
    keys = (row["key"] for shard in shards for row in read_rows_file(shard.rows_in(work)))
    for number, key in enumerate(keys):
        if hash(key) in suspects and numbers.setdefault(key, number) != number:
            # Only the source knows file and line. Should it have changed meanwhile, the rows' numbers must do.
            wanted = (numbers[key], number)
            where = {row.number: row.where for row in read_rows(run.source(), builder.needed) if row.number in wanted}
            first, second = (where.get(one, f"row {one}") for one in wanted)
            raise DuplicateKey(key=key, first=first, second=second)


def _discard(work: WorkDirectory) -> None:
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
                for suffix in FORMATS:
                    storage.remove(output.part(shard.slot, suffix))
        for suffix in FORMATS:
            storage.remove(output.unsettled_part(suffix))
        manifest = Manifest.load(output)
        if manifest is not None and manifest.plan == number:
            storage.remove(output.manifest)
        storage.publish(work.retired, orjson.dumps({"at": utc(attempt.now()), "by_plan": attempt.plan.number}))


def _cancel_if_running(attempt: Attempt, name: str) -> None:
    seen = attempt.client.look(name)
    if not isinstance(seen, Job) or not seen.phase.ended:
        log.warning("Cancelled, as its plan was replaced: %s", attempt.client.cancel(name))


def leftovers(work: WorkDirectory, rounds: list[Round], slot: Slot) -> Iterator[dict[str, Any]]:
    """
    Yield the unsettled rows of a slot that no later round took: ``row``, ``result``, ``job`` and ``auto``.

    A row that may pass by itself (``auto``) was taken by the very next round, whichever kind that was: there is a next
    one only to send such rows again. Any other row was taken by the first later round that took ``"all"``, if there is one.
    """
    later = [one.took for one in rounds if one.number > slot.round]
    path = work.unsettled(slot)
    if path.exists():
        with path.open("rb") as lines:
            for line in lines:
                unsettled = orjson.loads(line)
                if not (later if unsettled["auto"] else "all" in later):
                    yield unsettled


def open_round(attempt: Attempt, rounds: list[Round], *, took: Taken, last: int) -> Round | None:
    """
    Gather unsettled rows into the next round and put it in force; None when there is nothing to send again.

    :param took: ``"auto"``: rows of the newest round that failed for a passing reason; ``"all"``: every unsettled row.
    """
    number = len(rounds)

    def requests() -> Iterator[tuple[Request, str]]:
        for one in rounds:
            for shard in one.shards:
                left = leftovers(attempt.work, rounds, shard.slot)
                keys = {u["row"]["key"] for u in left if took == "all" or u["auto"]}
                if keys:
                    yield from _requests_of(attempt.work, shard, keys)

    home = f"round-{number}-{uuid.uuid4().hex[:8]}"
    shards = write_shards(requests(), attempt.work, number, attempt.run.policy.limits, home)
    if not shards:
        return None
    one = Round(number, last, shards, took).commit(attempt.work)
    log.info("Round %s: %s unsettled rows are sent again", number, sum(shard.rows for shard in one.shards))
    return one


def _requests_of(work: WorkDirectory, shard: Shard, keys: set[str]) -> Iterator[tuple[Request, str]]:
    with shard.requests_in(work).open("rb") as lines:
        for row in read_rows_file(shard.rows_in(work)):
            line = b"" if "unsent" in row else lines.readline()
            if row["key"] in keys:
                yield Request(row["key"], line, row.get("keep", {})), f"{shard.slot} key {row['key']!r}"
