"""
Media and processes that die: each content is uploaded once, each slot paid once, and nothing is left at the service.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from airflow_gemini_batch.core.config import request_template
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan, Round
from airflow_gemini_batch.core.requests import Request, Spec
from airflow_gemini_batch.core.shards import Limits, write_shards
from airflow_gemini_batch.emulator import Faults

pytestmark = pytest.mark.slow  # minutes in all; each by itself is quick

CORE = "airflow_gemini_batch.core."
ROWS, SLOTS, PICTURES = 6, 3, 4

POINTS: dict[str, tuple[Any, ...]] = {
    "in the middle of reading media": (f"{CORE}media_uploads:_read", "after", 2),
    "before the first upload of media": (f"{CORE}client:Client.upload", "before"),
    "after an upload of media": (f"{CORE}client:Client.upload", "after", 2),
    "after the media, before what is sent is written": (f"{CORE}media:_write", "before"),
    "in the middle of writing what is sent": (f"{CORE}media:_addressed", "before", 2),
    "before the preparation is recorded": (f"{CORE}ledger:Ledger.prepared", "before"),
    "after the preparation is recorded": (f"{CORE}ledger:Ledger.prepared", "after"),
    "after the second preparation is recorded": (f"{CORE}ledger:Ledger.prepared", "after", 2),
    "after the upload of what is sent": (f"{CORE}ledger:Ledger.uploaded", "after"),
    "after the claim": (f"{CORE}ledger:Ledger.claim", "after"),
    "after the create request left, reply never read": (f"{CORE}client:Client.create", "answered"),
    "after the reply, before the record": (f"{CORE}client:Client.create", "after"),
    "in the middle of landing": (f"{CORE}landing:Part.close", "before", 2),
    "after the manifest, before the media are removed": (f"{CORE}finishing:media.remove", "before"),
    "in the middle of removing the media": (f"{CORE}client:Client.delete_file", "after", SLOTS + 2),
}


@pytest.fixture
def picture_rig(make_rig: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A rig whose plan is made: six rows in three slots, about four pictures."""

    def make(emulator: dict[str, Any] | None = None, **settings: Any) -> Any:
        rig = make_rig(emulator, limits={"requests_per_job": ROWS // SLOTS}, **settings)
        rig.write_rows()
        requests = []
        for n in range(ROWS):
            path = tmp_path / f"{n}.png"
            path.write_bytes(b"\x89PNG\r\n\x1a\n %d" % (n % PICTURES))
            uri = f"file://{path}"  # the operator opens what users write, not only paths
            parts = [{"fileData": {"fileUri": uri, "mimeType": "image/png"}}, {"text": f"row-{n} is what?"}]
            body = {"key": f"row-{n}", "request": {"contents": [{"parts": parts, "role": "user"}]}}
            line = orjson.dumps(body, option=orjson.OPT_APPEND_NEWLINE)
            requests.append((Request(f"row-{n}", line, {"kept": n}, media=(uri,)), f"row {n}"))
        output = OutputDirectory(rig.output)
        shards = write_shards(requests, output.work("work"), 0, Limits(requests_per_job=ROWS // SLOTS))
        Round(0, 1, shards).commit(output.work("work"))
        spec = Spec("gemini-2.5-flash", "{id} is {text}", request_template(None, None), "id", ("kept",))
        run = RunId("a_dag", "a_task", "run-1")
        plan = Plan(1, "work", run, spec.to_dict(), ROWS, {"kept": "int64"}, "2026-01-01T00:00:00Z", 3)
        assert plan.commit(output)
        return rig

    return make


def check(rig: Any, *, jobs: int = SLOTS) -> None:
    """Every row is answered, so many jobs were paid, and nothing but their results is left at the service."""
    rig.check_table(ROWS)
    assert Counter(row["status"] for row in rig.landed()) == {"ok": ROWS}
    assert all(row["key"] in row["text"] for row in rig.landed())
    assert rig.emulator.jobs_created == jobs
    assert [file["name"] for file in rig.emulator.files if file["source"] == "UPLOADED"] == []


@pytest.mark.parametrize("point", POINTS)
def test_killed_and_retried_it_pays_once_and_leaves_nothing(picture_rig: Callable[..., Any], point: str) -> None:
    rig = picture_rig()
    rig.kill(POINTS[point])
    assert rig.run(try_number=2).code == 0
    check(rig)
    assert rig.emulator.calls["upload_start"] <= PICTURES + SLOTS + 1, "what was under way is all that is sent again"


def test_a_create_in_doubt_is_looked_for_before_anything_is_uploaded(picture_rig: Callable[..., Any]) -> None:
    rig = picture_rig({"job_seconds": 1.0})
    rig.kill((f"{CORE}client:Client.create", "answered"))
    before = rig.emulator.calls["upload_start"]
    retry = rig.stop((f"{CORE}submitting:prepare", "before"), try_number=2)
    assert len(list((rig.work() / "slots").glob("*/job.json"))) == 1, "the first slot's job is found"
    assert rig.emulator.calls["upload_start"] == before
    retry.send(signal.SIGCONT)
    assert retry.wait().code == 0
    check(rig)


@pytest.mark.parametrize("apart", [0.0, 0.3])
def test_two_attempts_at_once_upload_and_pay_once(picture_rig: Callable[..., Any], apart: float) -> None:
    rig = picture_rig({"faults": Faults(delay_seconds={"upload_chunk": 0.1, "create": 0.1}), "job_seconds": 3.0})
    start = time.time() + 0.3
    both = [rig.start(try_number=n, more={"start_at": start + (n - 1) * apart}) for n in (1, 2)]
    ended = [one.wait() for one in both]
    assert any(one.code == 0 for one in ended), [one.told for one in ended]
    for one in ended:
        assert one.code == 0 or one.error in ("Superseded", "CreateInDoubt", "StateUnreadable"), (
            f"{one.told}\n{one.log}"
        )
    cancelled = [job for job in rig.emulator.jobs if job.state == "CANCELLED"]
    check(rig, jobs=SLOTS + len(cancelled))
    said = "".join(one.log for one in ended)
    assert all(f"{twin.name} is a twin" in said for twin in cancelled)


def test_an_orphan_that_goes_on_while_media_are_removed_harms_nothing(picture_rig: Callable[..., Any]) -> None:
    rig = picture_rig(deferrable=False)
    orphan = rig.stop((f"{CORE}media:_write", "before"))
    assert rig.run(try_number=2).code == 0
    first = rig.answers()
    orphan.send(signal.SIGCONT)
    late = orphan.wait()
    assert late.code == 0 or late.error == "Superseded", f"{late.told}\n{late.log}"
    assert rig.emulator.jobs_created == SLOTS
    rig.check_table(ROWS)
    assert rig.answers() == first
