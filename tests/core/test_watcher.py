from __future__ import annotations

import asyncio

import httpx
import pytest

from airflow_gemini_batch.core import watcher
from airflow_gemini_batch.core.jobs import Gone, Job, Phase, Unreachable
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.watcher import Watcher
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError


@pytest.fixture
def account(emulator) -> Account:
    return Account("test-key", emulator.url, timeout=5)


@pytest.fixture
def jobs(emulator, client, tmp_path) -> tuple[str, ...]:
    path = tmp_path / "in.jsonl"
    path.write_text('{"key":"a","request":{"contents":[{"parts":[{"text":"hi"}]}]}}\n')
    file = client.upload(path, file_id="in", display_name="in").name
    return tuple(client.create(model="gemini-2.5-flash", file=file, display_name=f"job {n}") for n in range(20))


def test_every_job_is_in_the_answer_under_its_own_name(account, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await eyes.look((*jobs, "batches/gone"))

    seen = asyncio.run(run())
    assert list(seen) == [*jobs, "batches/gone"]
    assert all(
        isinstance(seen[job], Job) and seen[job].name == job and seen[job].phase is Phase.SUCCEEDED for job in jobs
    )
    assert isinstance(seen["batches/gone"], Gone)


def test_a_look_says_the_same_as_the_workers(account, client, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await eyes.look(jobs[:2])

    assert asyncio.run(run()) == client.look_at_all(jobs[:2])


def test_trouble_is_an_answer_and_never_an_exception(emulator, account, jobs):
    emulator.faults = Faults(http_errors={"get": HttpError(503, times=5)}, drop_before={"get": 3})

    async def run():
        async with Watcher.shared(account) as eyes:
            return await eyes.look(jobs)

    kinds = [type(one) for one in asyncio.run(run()).values()]
    assert kinds.count(Unreachable) == 8
    assert kinds.count(Job) == 12


def test_all_waits_on_one_account_share_a_watcher(account):
    async def run():
        other_account = Account("other", account.base_url)
        async with (
            Watcher.shared(account) as one,
            Watcher.shared(account) as two,
            Watcher.shared(other_account) as other,
        ):
            return one is two, one is other

    assert asyncio.run(run()) == (True, False)


def test_the_last_user_closes_it_and_the_next_gets_a_new_one(account, jobs):
    async def run():
        async with Watcher.shared(account) as one:
            async with Watcher.shared(account):
                pass
            assert isinstance((await one.look(jobs[:1]))[jobs[0]], Job)
        with pytest.raises(RuntimeError):
            await one.look(jobs[:1])
        async with Watcher.shared(account) as two:
            assert two is not one
            assert isinstance((await two.look(jobs[:1]))[jobs[0]], Job)

    asyncio.run(run())


def test_two_event_loops_do_not_share(account, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await eyes.look(jobs[:1])

    for _ in range(2):
        assert isinstance(asyncio.run(run())[jobs[0]], Job)


def test_only_so_many_looks_are_under_way_at_a_time(jobs, account, monkeypatch):
    at_once = most = 0
    send = httpx.AsyncClient.request

    async def counted(self, *args, **kwargs):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            return await send(self, *args, **kwargs)
        finally:
            at_once -= 1

    monkeypatch.setattr(httpx.AsyncClient, "request", counted)

    async def run():
        async with Watcher.shared(account) as eyes:
            await asyncio.gather(eyes.look(jobs), eyes.look(jobs))

    asyncio.run(run())
    assert most == watcher.AT_ONCE


def test_a_slow_service_does_not_hold_up_the_event_loop(emulator, account, jobs):
    emulator.faults = Faults(delay_seconds={"get": 0.15})

    async def run():
        ticks = 0
        async with Watcher.shared(account) as eyes:
            look = asyncio.create_task(eyes.look(jobs[:1]))
            while not look.done():
                await asyncio.sleep(0.005)
                ticks += 1
            return ticks

    assert asyncio.run(run()) >= 5


def test_a_job_can_be_cancelled_from_the_event_loop():
    async def run(account: Account, job: str) -> str:
        async with Watcher.shared(account) as eyes:
            return str(await eyes.cancel(job))

    with Emulator(job_seconds=999) as gemini:
        account = Account("k", gemini.url)
        reply = httpx.post(
            account.url("models/gemini-2.5-flash:batchGenerateContent"), headers=account.headers(),
            json={"batch": {"inputConfig": {"requests": {"requests": [
                {"request": {"contents": [{"parts": [{"text": "x"}]}]}}
            ]}}}},
        )  # fmt: skip
        job = reply.json()["name"]
        assert asyncio.run(run(account, job)).startswith(f"{job}: CANCELLED")
        assert gemini.jobs[0].state == "CANCELLED"
