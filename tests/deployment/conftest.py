"""One deployment for all tests of the session, since it takes half a minute to start."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.deployment.rig import Deployment, NotAvailable, check_available


@pytest.fixture(scope="session")
def airflow() -> Iterator[Deployment]:
    """A healthy deployment. Where it cannot be, tests are skipped with the reason; on CI they fail."""
    need_a_deployment()
    with Deployment() as deployment:
        yield deployment


def need_a_deployment() -> None:
    try:
        check_available()
    except NotAvailable as e:
        if os.environ.get("CI"):
            pytest.fail(str(e))
        pytest.skip(str(e))
