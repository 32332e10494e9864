"""Jobs apart from any run."""

from __future__ import annotations

import pytest

from airflow_gemini_batch.core import ends
from airflow_gemini_batch.core.attempt import Services
from airflow_gemini_batch.core.waiting import Outcome, Wait
from airflow_gemini_batch.emulator import Faults, HttpError
from airflow_gemini_batch.exceptions import NoSuchJob, ServiceUnreachable

INLINE = [{"request": {"contents": [{"parts": [{"text": "x"}]}]}, "metadata": {"key": "a"}}]


@pytest.fixture
def job(client) -> str:
    return client.create(model="gemini-2.5-flash", file="", display_name="theirs", inline=INLINE)


@pytest.mark.parametrize("deferred", [True, False])
def test_a_job_that_only_the_list_shows_is_waited_for_and_not_called_gone(emulator, client, clock, job, deferred):
    emulator.faults = Faults(stuck="RUNNING", http_errors={"get": HttpError(404)})
    outcomes = [Outcome(job, "gone")] if deferred else None
    services = Services(client, clock, clock.sleep)
    ended, waits = ends.look_at(services, [job], until=lambda seen: clock.now + 60, outcomes=outcomes)
    assert (ended, waits) == ([], (Wait(job, clock.now + 60),))


def test_a_job_that_no_list_shows_is_not_there(emulator, client, job):
    client.delete_job(job)
    with pytest.raises(NoSuchJob):
        ends.find(client, job)
    emulator.faults = Faults(http_errors={"list": HttpError(503)})
    with pytest.raises(ServiceUnreachable):
        ends.find(client, job)
