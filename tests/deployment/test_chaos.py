"""A short storm; ``make chaos`` runs a longer one and prints the figures."""

from __future__ import annotations

import os

import pytest

from tests.deployment.chaos import JOB_SECONDS, Chaos
from tests.deployment.conftest import need_a_deployment
from tests.deployment.rig import Deployment

pytestmark = pytest.mark.services


def test_whatever_is_killed_every_slot_is_paid_once_and_every_row_lands_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    need_a_deployment()
    seed = int(os.environ.get("CHAOS_SEED", "7"))
    with Deployment(parallelism=8, job_seconds=JOB_SECONDS) as airflow:
        figures = Chaos(airflow, minutes=1.5, seed=seed).run()
    with capsys.disabled():
        print(f"\n{figures}")  # noqa: T201 - the figures are what the test is for
    assert figures.problems() == []
