"""
How soon an end is noticed while the service makes trouble. Time is made up here: it passes at once while nothing happens, and
not at all while a slow machine works.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from airflow_gemini_batch.core import survey, watches
from airflow_gemini_batch.core.rest import Account
from airflow_gemini_batch.core.waiting import Wait
from airflow_gemini_batch.core.watcher import Watcher

from ..looking import MadeUpLoop

ACCOUNT = Account("test-key", "http://service", timeout=120)
INTERVAL = 20.0
LATER = INTERVAL + 5
HANGS = 60.0


def refusal(status: int) -> httpx.Response:
    return httpx.Response(status, json={"error": {"code": status, "message": "trouble", "status": "TROUBLE"}})


class Service:
    """
    Jobs that end at their times.

    :param get: given a job's name, says how long its answer takes and its HTTP status.
    :param read: the same for the list, given the number of the call; may also change what a page shows.
    """

    def __init__(self, jobs: int, *, hidden: int = 0, page: int = 1000) -> None:
        self.names = [f"batches/{n}" for n in range(jobs)]
        self.listed, self.page = self.names[hidden:], page
        self.ends: dict[str, float] = {}
        self.calls: Counter[str] = Counter()
        self.get: Callable[[str], tuple[float, int]] = lambda job: (0.0, 200)
        self.read: Callable[[int, list[Any]], tuple[float, int]] = lambda number, shown: (0.0, 200)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        job = request.url.path.removeprefix("/v1beta/")
        if job != "batches":
            self.calls["get"] += 1
            takes, status = self.get(job)
            await asyncio.sleep(takes)
            return httpx.Response(200, json=self._operation(job)) if status == 200 else refusal(status)
        self.calls["list"] += 1
        start = int(request.url.params.get("pageToken") or 0)
        shown = self.listed[start : start + self.page]
        takes, status = self.read(self.calls["list"], shown)
        await asyncio.sleep(takes)
        more = {"nextPageToken": str(start + self.page)} if len(shown) == self.page else {}
        body = {"operations": [self._operation(one) for one in shown]} | more
        return httpx.Response(200, json=body) if status == 200 else refusal(status)

    def _operation(self, job: str) -> dict[str, Any]:
        over = asyncio.get_running_loop().time() >= self.ends.get(job, math.inf)
        return {"name": job, "metadata": {"state": f"BATCH_STATE_{'SUCCEEDED' if over else 'RUNNING'}"}}


@pytest.fixture
def delays(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, float]]:
    """Wait for all jobs of a service, each in a task of its own; returns how long after its end each was noticed."""

    async def wait_for_all(service: Service, told: list[str]) -> dict[str, float]:
        loop, delay = asyncio.get_running_loop(), {}

        async def wait(job: str) -> None:
            async with Watcher.shared(ACCOUNT) as eyes:
                if not isinstance(eyes._http._transport, httpx.MockTransport):
                    eyes._http = httpx.AsyncClient(transport=httpx.MockTransport(service))
                (outcome,) = await eyes.wait([Wait(job, math.inf)], interval=INTERVAL, tell=told.append)
                assert outcome.how == "ended"
                delay[job] = loop.time() - service.ends[job]

        await asyncio.gather(*map(wait, service.names))
        return delay

    def run(service: Service, told: list[str] | None = None) -> dict[str, float]:
        with asyncio.Runner(loop_factory=MadeUpLoop) as runner:
            monkeypatch.setattr(survey, "time", SimpleNamespace(monotonic=runner.get_loop().time))
            return runner.run(wait_for_all(service, [] if told is None else told))

    return run


@pytest.mark.parametrize("seed", range(8))
def test_in_all_kinds_of_trouble_at_once_every_end_is_noticed_within_an_interval_and_five_seconds(delays, seed):
    chance = random.Random(seed)
    random.seed(seed)
    service = Service(80, hidden=10, page=30)
    service.ends = {job: chance.uniform(10, 10 * INTERVAL) for job in service.names}

    def get(job: str) -> tuple[float, int]:
        return (HANGS if chance.random() < 0.03 else 0.05), chance.choices([200, 500, 429], [18, 1, 1])[0]

    def read(number: int, shown: list[Any]) -> tuple[float, int]:
        match chance.choices(["well", "fails", "hangs", "short", "shifts"], [14, 2, 1, 2, 1])[0]:
            case "fails":
                return 0.05, chance.choice([500, 503, 429])
            case "hangs":
                return HANGS, 200
            case "short":
                del shown[chance.randrange(len(shown) + 1) :]
            case "shifts":
                service.listed.insert(0, f"batches/new-{number}")
        return 0.05, 200

    service.get, service.read = get, read
    assert max(delays(service).values()) <= LATER


@pytest.mark.parametrize("status", [500, 503, 429, 408])
def test_a_look_that_fails_is_repeated_soon_and_not_an_interval_later(delays, status):
    service, failing = Service(3), Counter()
    service.ends = dict.fromkeys(service.names, 50.0)

    def get(job: str) -> tuple[float, int]:
        if asyncio.get_running_loop().time() < 50:
            return 0.0, 200
        failing[job] += 1
        return 0.0, (status if failing[job] <= 3 else 200)

    service.get = get
    assert max(delays(service).values()) <= LATER


def test_a_look_that_fails_once_is_not_told(delays):
    service, asked = Service(3), Counter()
    service.ends = dict.fromkeys(service.names, 100.0)

    def get(job: str) -> tuple[float, int]:
        asked[job] += 1
        return 0.0, (503 if asked[job] % 2 else 200)

    service.get = get
    told: list[str] = []
    delays(service, told)
    assert told
    assert not any("could not be seen" in line for line in told)


def test_a_look_that_hangs_is_given_up_for_another(delays):
    service, asked = Service(3), Counter()
    service.ends = dict.fromkeys(service.names, 50.0)

    def get(job: str) -> tuple[float, int]:
        asked[job] += 1
        return (HANGS if asked[job] % 2 else 0.0), 200

    service.get = get
    assert max(delays(service).values()) <= LATER


def test_an_answer_that_takes_its_time_is_waited_for_in_the_end(delays):
    """As that of a job which ended with large inline results may."""
    service = Service(3)
    service.ends = dict.fromkeys(service.names, 50.0)
    service.get = lambda job: (20.0, 200)
    assert max(delays(service).values()) <= 6 * INTERVAL


def test_a_list_whose_pages_take_their_time_is_read_all_the_same(delays):
    service = Service(3000)
    service.ends = dict.fromkeys(service.names, 10 * INTERVAL)
    service.read = lambda number, shown: (6.0, 200)
    service.get = lambda job: (0.2, 200)
    delays(service)
    assert service.calls["get"] < 3000  # only until that was learnt


def test_when_the_list_comes_back_short_it_is_read_again_before_thousands_are_asked_for_one_by_one(delays):
    service = Service(5000)
    service.ends = {job: 20 + n / 100 for n, job in enumerate(service.names)}

    def read(number: int, shown: list[Any]) -> tuple[float, int]:
        if number % 7 == 0:
            del shown[10:]
        return 0.1, 200

    service.read, service.get = read, lambda job: (0.2, 200)
    assert max(delays(service).values()) <= LATER
    assert service.calls["get"] < 1000


def test_many_looks_that_hang_do_not_make_the_others_wait(delays):
    """The list fails; of those asked for one by one, every tenth never answers."""
    service = Service(300)
    service.ends = dict.fromkeys(service.names, 50.0)
    service.read = lambda number, shown: (0.0, 503)
    service.ends |= {job: 1000.0 for job in service.names if job.endswith("7")}

    def get(job: str) -> tuple[float, int]:
        hangs = job.endswith("7") and asyncio.get_running_loop().time() < 900
        return (HANGS if hangs else 0.02), 200

    service.get = get
    assert max(delays(service).values()) <= LATER


def test_a_service_that_is_away_for_an_hour_is_asked_ever_more_rarely_and_ends_no_wait(delays):
    service = Service(200)
    service.ends = dict.fromkeys(service.names, 1800.0)
    away = lambda: 100 < asyncio.get_running_loop().time() < 3700  # noqa: E731
    service.get = lambda job: (0.05, 503 if away() else 200)
    service.read = lambda number, shown: (0.05, 503 if away() else 200)
    assert max(delays(service).values()) <= 1900 + LATER
    rounds = 3600 / INTERVAL
    assert service.calls["get"] <= 2 * rounds * (watches.GIVE_UP + 8)
