"""What a person sees of a run in Airflow's UI, in a real browser: Chromium, which `.ci/run` installs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.deployment.cases import TASK, Case
from tests.deployment.rig import Deployment

pytestmark = pytest.mark.services

PATIENCE = 90
"""Seconds for a page to show what it should: the UI asks the server again every few seconds."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("chromedriver is needed (Debian's packages chromium and chromium-driver)")
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1500,1200"):
        options.add_argument(option)
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


class Page:
    """One page of the UI; finds wait for what they look for."""

    def __init__(self, browser: Any, url: str) -> None:
        from selenium.webdriver.common.by import By
        from selenium.webdriver.support import expected_conditions as seen
        from selenium.webdriver.support.ui import WebDriverWait

        self._browser, self._by, self._seen = browser, By, seen
        self._wait = WebDriverWait(browser, PATIENCE)
        browser.get(url)

    def find(self, xpath: str) -> Any:
        return self._wait.until(self._seen.visibility_of_element_located((self._by.XPATH, xpath)), f"no {xpath}")

    def link(self, name: str) -> str:
        return str(self.find(f"//a[normalize-space()='{name}']").get_attribute("href"))


def test_a_waiting_task_shows_its_job_and_its_progress_and_a_landed_one_its_manifest(
    airflow: Deployment, browser: Any
) -> None:
    case = Case(airflow, "in_a_browser")
    jobs = [job["name"] for job in case.start_and_wait_until_its_jobs_run()]
    task = f"{airflow.api.url}/dags/{case.dag_id}/runs/r1/tasks/{TASK}"
    page = Page(browser, task)
    page.find("//*[contains(text(), '2 jobs: 2 RUNNING')]")
    page = Page(browser, f"{task}/details")
    assert page.link("Gemini batch job") in [f"https://aistudio.google.com/batches#{job}" for job in jobs]
    assert page.link("Landed files") == f"{task}/xcom#file://{airflow.outputs}/{case.dag_id}/r1"
    case.finish()
    case.wait("success")
    page = Page(browser, Page(browser, f"{task}/details").link("Manifest"))
    page.find("//*[contains(text(), 'return_value')]")
    page.find(f"//*[contains(text(), '{airflow.outputs}/{case.dag_id}/r1/_gemini_batch/manifest.json')]")


def test_the_connection_form_asks_for_the_key_and_our_own_settings(airflow: Deployment, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, f"{airflow.api.url}/connections")
    page.find("//button[contains(., 'Add Connection')]").click()
    kinds = page.find("//div[@role='dialog']//input[@role='combobox']")
    kinds.send_keys("Gemini Batch")
    kinds.send_keys(Keys.ENTER)
    key = page.find("//div[@role='dialog']//input[@name='password']")
    assert key.get_attribute("type") == "password"
    page.find("//div[@role='dialog']//*[normalize-space()='API key']")
    page.find("//div[@role='dialog']//button[contains(., 'Extra Fields')]").click()
    page.find("//div[@role='dialog']//*[normalize-space()='Timeout of one call']")
    assert "Login" not in page.find("//div[@role='dialog']").text
