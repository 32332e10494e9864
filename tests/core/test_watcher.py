from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from contextlib import asynccontextmanager, suppress

import httpx
import pytest

from airflow_gemini_batch.core import survey, waiting, watcher, watches
from airflow_gemini_batch.core.jobs import Gone, Job, Phase, Unreachable
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.survey import Survey
from airflow_gemini_batch.core.waiting import Outcome, Wait
from airflow_gemini_batch.core.watcher import Watcher
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options

from ..looking import look


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(survey, "RETRY_AFTER", 0.01)
    monkeypatch.setattr(watches, "AGAIN", 0.01)
    for module, name in ((survey, "PATIENCE"), (survey, "MOST_PATIENCE"), (watches, "PATIENCE"), (watcher, "SLOW")):
        monkeypatch.setattr(module, name, 60.0)  # a slow machine is no trouble of the service


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
            return await look(eyes, (*jobs, "batches/gone"))

    seen = asyncio.run(run())
    assert list(seen) == [*jobs, "batches/gone"]
    assert all(
        isinstance(seen[job], Job) and seen[job].name == job and seen[job].phase is Phase.SUCCEEDED for job in jobs
    )
    assert isinstance(seen["batches/gone"], Gone)


def test_a_look_says_the_same_as_the_workers(account, client, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await look(eyes, jobs[:2])

    assert asyncio.run(run()) == client.look_at_all(jobs[:2])


def test_trouble_is_an_answer_and_never_an_exception(emulator, account, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await look(eyes, jobs)

    emulator.faults = Faults(http_errors={"get": HttpError(503), "list": HttpError(503)})
    assert {type(one) for one in asyncio.run(run()).values()} == {Unreachable}


def test_trouble_that_passes_is_no_news(emulator, account, jobs):
    emulator.faults = Faults(
        http_errors={"get": HttpError(503, times=5), "list": HttpError(503)}, drop_before={"get": 3}
    )

    async def run():
        async with Watcher.shared(account) as eyes:
            return await look(eyes, jobs)

    assert {type(one) for one in asyncio.run(run()).values()} == {Job}


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
            assert isinstance((await look(one, jobs[:1]))[jobs[0]], Job)
        with pytest.raises(RuntimeError):
            await look(one, jobs[:1])
        async with Watcher.shared(account) as two:
            assert two is not one
            assert isinstance((await look(two, jobs[:1]))[jobs[0]], Job)

    asyncio.run(run())


def test_two_event_loops_do_not_share(account, jobs):
    async def run():
        async with Watcher.shared(account) as eyes:
            return await look(eyes, jobs[:1])

    for _ in range(2):
        assert isinstance(asyncio.run(run())[jobs[0]], Job)


def test_only_so_many_looks_are_under_way_at_a_time(account):
    at_once = most = 0

    async def counted(request):
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.001)
        at_once -= 1
        status = 503 if request.url.path.endswith("/batches") else 404
        return httpx.Response(status, json={"error": {"code": status, "message": "x"}})

    async def run(count):
        async with Watcher.shared(account) as eyes:
            eyes._http = httpx.AsyncClient(transport=httpx.MockTransport(counted))
            await look(eyes, tuple(f"batches/{n}" for n in range(count)))

    asyncio.run(run(10))
    assert most == 1
    asyncio.run(run(400))
    assert most == watcher.AT_ONCE


def test_a_slow_service_does_not_hold_up_the_event_loop(emulator, account, jobs):
    emulator.faults = Faults(delay_seconds={"get": 0.5})

    async def run():
        ticks = 0
        async with Watcher.shared(account) as eyes:
            looking = asyncio.create_task(look(eyes, jobs[:1]))
            while not looking.done():
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


# Many who wait


@pytest.fixture
def crowd():
    """A service with 60 jobs that run until they are told to end."""
    with Emulator(faults=Faults(stuck="RUNNING"), options=Options(concurrent_jobs=100)) as gemini:
        account = Account("test-key", gemini.url, timeout=5)
        body = {
            "batch": {
                "inputConfig": {"requests": {"requests": [{"request": {"contents": [{"parts": [{"text": "x"}]}]}}]}}
            }
        }
        with httpx.Client(headers=account.headers()) as http:
            for _ in range(60):
                http.post(account.url("models/gemini-2.5-flash:batchGenerateContent"), json=body).raise_for_status()
        yield gemini, account, tuple(job.name for job in gemini.jobs)


class Waiting:
    """One wait per job, each in a task of its own."""

    def __init__(self, eyes: Watcher, jobs, *, interval: float = 0.2, seconds: float = 60) -> None:
        self.told: dict[str, list[str]] = {job: [] for job in jobs}
        self.tasks = {
            job: asyncio.create_task(
                eyes.wait([Wait(job, time.time() + seconds)], interval=interval, tell=self.told[job].append)
            )
            for job in jobs
        }

    async def until(self, said: str = "RUNNING") -> None:
        """Return when every wait has told so."""
        while not all(any(said in line for line in lines) for lines in self.told.values()):
            await asyncio.sleep(0.01)

    async def outcomes(self) -> dict[str, str]:
        return {job: one.how for task in self.tasks.values() for one in await task for job in [one.job]}


@asynccontextmanager
async def crowded(account: Account, jobs, **settings):
    async with asyncio.timeout(60), Watcher.shared(account) as eyes:
        waiting = Waiting(eyes, jobs, **settings)
        try:
            yield waiting
        finally:
            for task in waiting.tasks.values():
                task.cancel()
            await asyncio.wait(waiting.tasks.values())


def looking(account: Account) -> Watcher:
    return Watcher._all[asyncio.get_running_loop()][account]


def test_many_waits_share_a_call_per_round_and_each_end_reaches_who_waits_for_it(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs, interval=2) as waiting:
            await waiting.until()
            for n, job in enumerate(jobs):
                gemini.set_state(job, ("SUCCEEDED", "FAILED")[n % 2])
            assert await waiting.outcomes() == dict.fromkeys(jobs, "ended")
            assert {job: task.result()[0].detail for job, task in waiting.tasks.items()} == {
                job: ("SUCCEEDED", "FAILED")[n % 2] for n, job in enumerate(jobs)
            }

    asyncio.run(run())
    assert gemini.calls["get"] == 0
    assert gemini.calls["list"] <= 10  # of which each takes two seconds


def test_there_is_one_round_per_interval_however_many_wait_and_whenever_they_came(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs[:30], interval=0.5) as first:
            await first.until()
            async with crowded(account, jobs[30:], interval=0.5) as second:
                await second.until()
                before, began = gemini.calls["list"], time.monotonic()
                while gemini.calls["list"] < before + 5:
                    await asyncio.sleep(0.01)
                return time.monotonic() - began

    least = 0.5 * (1 - waiting.JITTER)
    assert asyncio.run(run()) >= 4 * least - 0.1
    assert gemini.calls["get"] == 0


def test_who_has_no_news_is_not_woken(crowd, monkeypatch):
    gemini, account, jobs = crowd
    woken = []
    real = waiting.step
    monkeypatch.setattr(waiting, "step", lambda wait, seen, now: woken.append(wait.job) or real(wait, seen, now=now))

    async def run():
        async with crowded(account, jobs, interval=0.1) as waiting:
            await waiting.until()
            woken.clear()
            gemini.set_state(jobs[5], "SUCCEEDED")
            await waiting.tasks[jobs[5]]
            await asyncio.sleep(0.5)

    asyncio.run(run())
    assert woken == [jobs[5]]


def test_the_most_impatient_decides_how_often_a_job_is_looked_at(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs[:1], interval=30) as patient:
            await asyncio.sleep(0)
            async with crowded(account, jobs[:1], interval=0.1) as impatient:
                await impatient.until()
                gemini.set_state(jobs[0], "SUCCEEDED")
                began = time.monotonic()
                assert await impatient.outcomes() == await patient.outcomes() == {jobs[0]: "ended"}
                return time.monotonic() - began

    assert asyncio.run(run()) < 10


def test_a_newcomer_takes_what_is_known_already(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs[:1], interval=30) as first:
            await first.until()
            async with crowded(account, jobs[:1], interval=30) as second:
                await second.until()

    asyncio.run(run())
    assert gemini.calls["get"] == 1


def test_a_deleted_job_is_gone_after_three_looks_and_the_others_stay(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            httpx.delete(account.url(jobs[7]), headers=account.headers()).raise_for_status()
            assert [one.how for one in await waiting.tasks[jobs[7]]] == ["gone"]
            assert not any(task.done() for job, task in waiting.tasks.items() if job != jobs[7])

    asyncio.run(run())
    assert gemini.calls["get"] == waiting.SURE_AFTER


def test_news_of_other_jobs_do_not_make_one_look_at_a_missing_job_count_twice(crowd):
    gemini, account, jobs = crowd
    told = []

    async def change_all_the_time():
        for n in range(10_000):
            gemini.set_state(jobs[n % 50], ("PENDING", "RUNNING")[n // 50 % 2])
            await asyncio.sleep(0.003)

    async def run():
        httpx.delete(account.url(jobs[55]), headers=account.headers()).raise_for_status()
        changes = asyncio.create_task(change_all_the_time())
        async with Watcher.shared(account) as eyes:
            # Another's wait, so impatient that it brings the first one news of all jobs but one all the time.
            other = asyncio.create_task(
                eyes.wait([Wait(job, time.time() + 60) for job in jobs[:50]], interval=0.02, tell=lambda line: None)
            )
            outcomes = await eyes.wait([Wait(job, time.time() + 60) for job in jobs], interval=0.4, tell=told.append)
            other.cancel()
            changes.cancel()
            await asyncio.wait({other, changes})
            return outcomes

    assert [one.how for one in asyncio.run(run())] == ["gone"]
    assert gemini.calls["get"] == waiting.SURE_AFTER
    assert len(told) > waiting.SURE_AFTER


def test_jobs_that_the_list_does_not_show_yet_are_seen_all_the_same(crowd):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", list_lag=3600)

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            gemini.set_state(jobs[3], "EXPIRED")
            assert await waiting.tasks[jobs[3]] == (Outcome(jobs[3], "ended", "EXPIRED"),)

    asyncio.run(run())
    assert gemini.calls["get"] >= 60


@pytest.mark.parametrize("trouble", [HttpError(429), HttpError(503), HttpError(403), HttpError(200, body="<html>")])
def test_a_list_that_fails_for_good_ends_no_wait_and_hides_no_end(crowd, trouble):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={"list": trouble})

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            gemini.set_state(jobs[0], "CANCELLED")
            assert await waiting.tasks[jobs[0]] == (Outcome(jobs[0], "ended", "CANCELLED"),)
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in list(waiting.tasks.values())[1:])

    asyncio.run(run())


def test_a_list_that_hangs_gives_way_to_get(crowd, monkeypatch):
    gemini, account, jobs = crowd
    monkeypatch.setattr(survey, "PATIENCE", 0.2)
    gemini.faults = Faults(stuck="RUNNING", delay_seconds={"list": 20})

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()

    began = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - began < 15


def test_many_jobs_that_are_asked_for_one_by_one_share_a_few_connections():
    connections = 0

    async def answer(reader, writer):
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                name = asked.split(b" ")[1].decode().removeprefix("/v1beta/")
                listed = name.startswith("batches?")
                body = b"" if listed else json.dumps({"name": name, "metadata": {"state": "RUNNING"}}).encode()
                status = b"500 no" if listed else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, Watcher.shared(Account("test-key", f"http://127.0.0.1:{port}", timeout=5)) as eyes:
            seen = await look(eyes, tuple(f"batches/{n}" for n in range(300)))
            assert all(isinstance(one, Job) for one in seen.values())

    asyncio.run(run())
    assert connections <= watcher.AT_ONCE + 2


def test_a_job_that_does_not_answer_blinds_nobody_to_the_others(crowd, serve, monkeypatch):
    """One get hangs; jobs that are looked at with it, and the one who came later, are seen all the same."""
    _, _, jobs = crowd
    monkeypatch.setattr(watcher, "SLOW", 0.1)
    hung, ended = threading.Event(), threading.Event()

    def answer(path, number):
        name = path.removeprefix("/v1beta/")
        if name == jobs[0] and not hung.is_set():
            hung.wait(20)
        state = "SUCCEEDED" if ended.is_set() else "RUNNING"
        return 200, {}, json.dumps({"name": name, "metadata": {"state": f"BATCH_STATE_{state}"}}).encode()

    account = Account("test-key", serve(answer).url, timeout=30)

    async def run():
        async with crowded(account, jobs[:3], interval=0.2) as waiting:
            while not (waiting.told[jobs[1]] and waiting.told[jobs[2]]):
                await asyncio.sleep(0.01)
            ended.set()
            await asyncio.gather(waiting.tasks[jobs[1]], waiting.tasks[jobs[2]])
            assert not waiting.told[jobs[0]]
            hung.set()
            assert await waiting.tasks[jobs[0]] == (Outcome(jobs[0], "ended", "SUCCEEDED"),)

    asyncio.run(run())


HUNG = 20.0
"""Seconds for which a look hangs."""


class Hanging:
    """A service whose jobs have ended, but for some whose looks hang."""

    def __init__(self, serve, jobs, hung) -> None:
        self.jobs, self.hung, self.over = jobs, set(hung), threading.Event()
        self.account = Account("test-key", serve(self).url, timeout=30)

    def __call__(self, path, number):
        shown = [
            {"name": job, "metadata": {"state": "BATCH_STATE_SUCCEEDED"}} for job in self.jobs if job not in self.hung
        ]
        if path.startswith("/v1beta/batches?"):
            return 200, {}, json.dumps({"operations": shown}).encode()
        name = path.removeprefix("/v1beta/")
        if name in self.hung:
            self.over.wait(HUNG)
        return 200, {}, json.dumps({"name": name, "metadata": {"state": "BATCH_STATE_SUCCEEDED"}}).encode()

    async def wait(self, *, seconds=3600, until=None):
        """Wait for all jobs together; returns the outcomes, and how long it took."""
        began = time.monotonic()
        try:
            async with Watcher.shared(self.account) as eyes:
                waits = [Wait(job, time.time() + seconds) for job in self.jobs]
                outcomes = await eyes.wait(waits, interval=2, tell=lambda line: None, until=until)
                return outcomes, time.monotonic() - began
        finally:
            self.over.set()


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(watcher, "SLOW", 0.2)


def test_one_look_that_hangs_holds_up_no_end_of_the_same_waits_other_jobs(serve, hasty):
    jobs = [f"batches/{n}" for n in range(24)]
    outcomes, took = asyncio.run(Hanging(serve, jobs, jobs[:1]).wait())
    assert outcomes == tuple(Outcome(job, "ended", "SUCCEEDED") for job in jobs[1:])
    assert took < 7


@pytest.mark.parametrize(
    "ends", [lambda: {"seconds": 1}, lambda: {"until": time.time() + 1}], ids=["deadline", "until"]
)
def test_looks_that_hang_hold_up_no_deadline_and_no_time_to_come_back(serve, hasty, ends):
    jobs = [f"batches/{n}" for n in range(3)]
    outcomes, took = asyncio.run(Hanging(serve, jobs, jobs).wait(**ends()))
    assert {one.how for one in outcomes} <= {"timed_out"}
    assert took < 6


def test_many_looks_that_hang_do_not_hide_the_end_of_another_job(serve, hasty):
    jobs = [f"batches/{n}" for n in range(11)]
    outcomes, took = asyncio.run(Hanging(serve, jobs, jobs[:10]).wait())
    assert outcomes == (Outcome(jobs[10], "ended", "SUCCEEDED"),)
    assert took < 10


@pytest.mark.parametrize("refused", ["get", "list"])
def test_a_service_that_names_a_time_is_left_alone_by_all_who_wait(crowd, refused):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={refused: HttpError(429, retry_seconds=600)})

    async def run():
        async with crowded(account, jobs if refused == "list" else jobs[:5], interval=0.1) as waiting:
            await waiting.until("could not be seen")
            async with crowded(account, jobs[:5], interval=0.1):
                await asyncio.sleep(1)

    asyncio.run(run())
    assert gemini.calls["list"] + gemini.calls["get"] == 1


def test_a_service_that_was_left_alone_for_its_time_is_looked_at_again(crowd):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={"list": HttpError(429, times=1, retry_seconds=1)})

    async def run():
        began = time.monotonic()
        async with crowded(account, jobs, interval=0.1) as waiting:
            await waiting.until("could not be seen")
            gemini.set_state(jobs[0], "SUCCEEDED")
            assert await waiting.tasks[jobs[0]] == (Outcome(jobs[0], "ended", "SUCCEEDED"),)
            return time.monotonic() - began

    assert asyncio.run(run()) >= 1


def test_a_deadline_is_met_while_the_service_is_left_alone(crowd):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={"*": HttpError(429, retry_seconds=600)})

    async def run():
        async with crowded(account, jobs[:2], interval=0.1, seconds=1) as first:
            await first.until("could not be seen")
            async with crowded(account, jobs[:3], interval=0.1, seconds=1) as second:
                return await first.outcomes(), await second.outcomes()

    assert asyncio.run(run()) == (dict.fromkeys(jobs[:2], "timed_out"), dict.fromkeys(jobs[:3], "timed_out"))


def test_a_service_that_refuses_all_looks_is_asked_ever_more_rarely(crowd, monkeypatch):
    gemini, account, jobs = crowd
    monkeypatch.setattr(watches, "AGAIN", 0.1)
    gemini.faults = Faults(stuck="RUNNING", http_errors={"get": HttpError(429)})

    async def run():
        began = time.monotonic()
        async with crowded(account, jobs[:1], interval=0.1):
            while gemini.calls["get"] < 7:
                await asyncio.sleep(0.01)
            return time.monotonic() - began

    assert asyncio.run(run()) >= 0.2 + 0.4 + 0.8 + 1.6


def test_a_service_that_is_away_is_not_asked_for_every_job_and_ends_no_wait(crowd):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={"*": HttpError(503)})

    async def run():
        async with crowded(account, jobs, interval=2) as waiting:
            await waiting.until("could not be seen")
            # Of each round, which begins with the list.
            assert gemini.calls["get"] <= gemini.calls["list"] * (watcher.GIVE_UP + watcher.AT_ONCE)
            gemini.faults = Faults(stuck="RUNNING")
            await waiting.until("RUNNING")
            assert not any(task.done() for task in waiting.tasks.values())

    asyncio.run(run())


def test_deadlines_are_met_although_nobody_is_woken(crowd):
    _, account, jobs = crowd

    async def run():
        async with crowded(account, jobs, seconds=0.5, interval=0.2) as waiting:
            assert await waiting.outcomes() == dict.fromkeys(jobs, "timed_out")

    asyncio.run(run())


def test_a_wait_for_several_jobs_ends_with_the_first(crowd):
    gemini, account, jobs = crowd
    told = []

    async def run():
        async with Watcher.shared(account) as eyes:
            waits = [Wait(job, time.time() + 60) for job in jobs]
            wait = asyncio.create_task(eyes.wait(waits, interval=0.1, tell=told.append))
            while not told:
                await asyncio.sleep(0.01)
            gemini.set_state(jobs[9], "FAILED")
            return await wait

    assert asyncio.run(run()) == (Outcome(jobs[9], "ended", "FAILED"),)
    assert told[0].startswith("60 jobs: 60 RUNNING")


def test_that_nothing_changes_is_told_now_and_then(crowd, monkeypatch):
    _, account, jobs = crowd
    for module in (waiting, watcher):
        monkeypatch.setattr(module, "HEARTBEAT", 0.2)

    async def run():
        async with crowded(account, jobs[:1]) as waits:
            while len(waits.told[jobs[0]]) < 3:
                await asyncio.sleep(0.05)

    asyncio.run(run())


# Who comes, who goes, and what breaks


def test_a_cancelled_wait_leaves_the_others_waiting_and_seen(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            for job in jobs[:40]:
                waiting.tasks[job].cancel()
            await asyncio.wait([waiting.tasks[job] for job in jobs[:40]])
            assert set(looking(account)._watched) == set(jobs[40:])
            gemini.set_state(jobs[50], "SUCCEEDED")
            assert await waiting.tasks[jobs[50]] == (Outcome(jobs[50], "ended", "SUCCEEDED"),)

    asyncio.run(run())


def test_the_last_one_leaves_no_task_and_no_connection_behind(crowd):
    _, account, jobs = crowd

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            http = looking(account)._http
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert http.is_closed
        assert not Watcher._all[asyncio.get_running_loop()]

    asyncio.run(run())


def test_a_last_one_who_is_cancelled_leaves_nothing_behind_either(crowd):
    gemini, account, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", delay_seconds={"list": 5})

    async def wait_for_all():
        async with Watcher.shared(account) as eyes:
            await eyes.wait([Wait(job, time.time() + 60) for job in jobs], interval=0.1, tell=lambda line: None)

    async def run():
        task = asyncio.create_task(wait_for_all())
        await asyncio.sleep(0.2)
        http = looking(account)._http
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert http.is_closed

    asyncio.run(run())


def test_a_mistake_in_a_round_is_told_and_the_looking_goes_on(crowd, monkeypatch, caplog):
    gemini, account, jobs = crowd
    real, failures = Survey.listed, iter(range(watches.TRIES))

    def broken(self, *arguments):
        if next(failures, None) is not None:
            raise ZeroDivisionError("a mistake")
        return real(self, *arguments)

    monkeypatch.setattr(Survey, "listed", broken)

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            assert all("a mistake" in lines[0] for lines in waiting.told.values())
            gemini.set_state(jobs[0], "SUCCEEDED")
            await waiting.tasks[jobs[0]]

    asyncio.run(run())
    assert "ZeroDivisionError" in caplog.text


def test_a_looking_that_somebody_ended_begins_again(crowd):
    gemini, account, jobs = crowd

    async def run():
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            looking(account)._looking.cancel()
            gemini.set_state(jobs[0], "SUCCEEDED")
            assert await waiting.tasks[jobs[0]] == (Outcome(jobs[0], "ended", "SUCCEEDED"),)

    asyncio.run(run())


def test_what_the_looking_logs_is_not_the_first_waits(crowd, monkeypatch):
    _, account, jobs = crowd
    whose = contextvars.ContextVar("whose", default="nobody's")
    seen = []
    real = Watcher._round

    async def noted(self, *arguments):
        seen.append(whose.get())
        await real(self, *arguments)

    monkeypatch.setattr(Watcher, "_round", noted)

    async def run():
        whose.set("the first trigger's")
        async with crowded(account, jobs) as waiting:
            await waiting.until()

    asyncio.run(run())
    assert set(seen) == {"nobody's"}


def test_many_who_wake_at_once_let_others_run_in_between(crowd):
    """A round that has news for everybody wakes them a few at a time."""
    _, account, jobs = crowd

    async def run():
        turns = 0
        async with crowded(account, jobs, interval=5) as waiting:
            while not any(waiting.told.values()):
                await asyncio.sleep(0)
            while not all(waiting.told.values()):
                await asyncio.sleep(0)
                turns += 1
        return turns

    assert asyncio.run(run()) >= len(jobs) / watcher.AWAKE_AT_ONCE - 1


def test_waiting_starts_no_thread(crowd):
    _, account, jobs = crowd

    async def run():
        before = set(threading.enumerate())
        async with crowded(account, jobs) as waiting:
            await waiting.until()
            assert set(threading.enumerate()) == before

    asyncio.run(run())


@pytest.mark.parametrize("refused", ["get", "list"])
def test_the_worker_leaves_a_service_alone_that_names_a_time(crowd, connect, refused):
    gemini, _, jobs = crowd
    gemini.faults = Faults(stuck="RUNNING", http_errors={refused: HttpError(429, retry_seconds=600)})
    asked = jobs if refused == "list" else jobs[:5]
    seen = connect(gemini.url).look_at_all(asked)
    assert list(seen) == list(asked)
    assert {one.retry_after for one in seen.values()} == {600}
    assert gemini.calls["list"] + gemini.calls["get"] == 1


def test_the_worker_lists_as_well(crowd, connect):
    gemini, _, jobs = crowd
    seen = connect(gemini.url).look_at_all(jobs)
    assert {job: one.state for job, one in seen.items()} == dict.fromkeys(jobs, "RUNNING")
    assert gemini.calls["list"] == 1
    assert gemini.calls["get"] == 0
