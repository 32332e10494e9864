from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import socket
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from airflow_gemini_batch.core.client import ATTEMPTS
from airflow_gemini_batch.core.jobs import Gone, Job, Phase, Refused, Unreachable
from airflow_gemini_batch.core.remote_files import RemoteFile, _sha256
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options, Truncation
from airflow_gemini_batch.exceptions import (
    CreateInDoubt,
    CredentialsRefused,
    DownloadBroken,
    GeminiBatchError,
    QuotaExceeded,
    RequestRefused,
    ServiceUnreachable,
)

MODEL = "gemini-2.5-flash"
LINE = b'{"key":"%d","request":{"contents":[{"role":"user","parts":[{"text":"hello %d"}]}]}}\n'
NOBODY = "http://127.0.0.1:9"
"""The discard port: nothing listens there."""


@pytest.fixture
def requests(tmp_path):
    """A file of three requests."""
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"".join(LINE % (n, n) for n in range(3)))
    return path


@pytest.fixture
def uploaded(client, requests) -> str:
    return client.upload(requests, file_id="agb1-in", display_name="in").name


# Creating: exactly one request, and what became of it


def create(client, uploaded, model: str = MODEL) -> str:
    return client.create(model=model, file=uploaded, display_name="agb1.x")


def test_a_create_makes_one_job_and_returns_its_name(emulator, client, uploaded):
    name = create(client, uploaded)
    (job,) = emulator.jobs
    assert (job.name, job.display_name, job.model, job.input_file) == (name, "agb1.x", MODEL, uploaded)
    assert emulator.calls["create"] == 1


BAD_KEY = HttpError(400, message="API key not valid. Please pass a valid API key.")


@pytest.mark.parametrize(
    ("faults", "error", "jobs"),
    [
        # Definitely not created
        ({"http_errors": {"create": HttpError(429)}}, QuotaExceeded, 0),
        ({"http_errors": {"create": HttpError(429, help=True, retry_seconds=30, retry_after=30)}}, QuotaExceeded, 0),
        ({"http_errors": {"create": HttpError(400)}}, RequestRefused, 0),
        ({"http_errors": {"create": HttpError(400, rpc_status="FAILED_PRECONDITION")}}, RequestRefused, 0),
        ({"http_errors": {"create": HttpError(403)}}, RequestRefused, 0),
        ({"http_errors": {"create": HttpError(404)}}, RequestRefused, 0),
        ({"http_errors": {"create": HttpError(401)}}, CredentialsRefused, 0),
        ({"http_errors": {"create": BAD_KEY}}, CredentialsRefused, 0),
        # Nobody knows
        ({"http_errors": {"create": HttpError(500)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(503)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(504)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(408)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(499)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(502, html=True)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(404, html=True)}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(500, body="oops")}}, CreateInDoubt, 0),
        ({"http_errors": {"create": HttpError(503, recorded=True)}}, CreateInDoubt, 1),
        ({"http_errors": {"create": HttpError(500, recorded=True, html=True)}}, CreateInDoubt, 1),
        ({"http_errors": {"create": HttpError(200, recorded=True, body="")}}, CreateInDoubt, 1),
        ({"http_errors": {"create": HttpError(200, recorded=True, body="<html>")}}, CreateInDoubt, 1),
        ({"http_errors": {"create": HttpError(200, recorded=True, body='{"name": ""}')}}, CreateInDoubt, 1),
        ({"http_errors": {"create": HttpError(200, recorded=True, body="[]")}}, CreateInDoubt, 1),
        ({"drop_before": {"create": 9}}, CreateInDoubt, 0),
        ({"drop_after": {"create": 9}}, CreateInDoubt, 1),
    ],
    ids=str,
)
def test_every_way_a_create_can_go_wrong_is_told_apart_and_sent_once(emulator, client, uploaded, faults, error, jobs):
    emulator.faults = Faults(**faults)
    with pytest.raises(GeminiBatchError) as caught:
        create(client, uploaded)
    assert type(caught.value) is error
    assert (emulator.calls["create"], emulator.jobs_created) == (1, jobs)


def test_a_create_that_runs_out_of_time_is_in_doubt_and_sent_once(emulator, connect, uploaded):
    emulator.faults = Faults(delay_seconds={"create": 0.3})
    # Not the service's own deadline (which would be told as whole seconds) but ours comes first.
    client = connect(timeout=0.1)
    with pytest.raises(CreateInDoubt, match=r"agb1\.x"):
        create(client, uploaded)
    assert emulator.calls["create"] == 1


def test_without_a_connection_nothing_was_created(connect):
    with pytest.raises(ServiceUnreachable) as caught:
        create(connect(NOBODY), "files/x")
    assert not isinstance(caught.value, CreateInDoubt)


def test_an_unknown_host_is_no_doubt_either(connect):
    with pytest.raises(ServiceUnreachable):
        create(connect("http://no-such-host.invalid"), "files/x")


def test_a_server_that_takes_the_request_and_says_nothing_leaves_doubt(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(CreateInDoubt):
        create(connect(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.2), "files/x")


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [("gemini-99-none at all", 404, "not found"), ("gemini-embedding-001", 404, "not supported")],
)
def test_a_refusal_says_what_the_service_said(emulator, client, uploaded, model, code, said):
    with pytest.raises(RequestRefused, match=said) as caught:
        create(client, uploaded, model)
    assert caught.value.code == code
    assert emulator.jobs_created == 0


@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_input_file_is_a_refusal(connect, status):
    with Emulator(options=Options(missing_input_status=status)) as gemini:
        with pytest.raises(RequestRefused) as caught:
            create(connect(gemini.url), "files/gone")
        assert caught.value.code == status


def test_full_house_is_a_quota(connect, requests):
    with Emulator(job_seconds=999, options=Options(concurrent_jobs=1)) as gemini:
        client = connect(gemini.url)
        file = client.upload(requests, file_id="a", display_name="a").name
        create(client, file)
        with pytest.raises(QuotaExceeded) as caught:
            create(client, file)
        assert (caught.value.phase, caught.value.quota) == ("create", "not named by the service")


@pytest.mark.parametrize("call", ["upload_start", "upload_chunk"])
@pytest.mark.parametrize(
    "more", [{"retry_seconds": 22, "quota": "uploads"}, {"retry_after": 22}, {"html": True}], ids=str
)
def test_an_upload_refused_by_a_quota_says_so_and_is_not_repeated(emulator, client, requests, call, more):
    emulator.faults = Faults(http_errors={call: HttpError(429, **more)})
    with pytest.raises(QuotaExceeded) as caught:
        client.upload(requests, file_id="a", display_name="a")
    assert (caught.value.phase, caught.value.retry_after) == ("upload", None if "html" in more else 22)
    assert ("uploads" in caught.value.quota) is ("quota" in more)
    assert emulator.calls["upload_start"] == 1
    assert emulator.calls["upload_chunk"] <= 3, "the SDK sends a piece again by itself, and nobody else does"


def test_a_look_refused_by_a_quota_says_when_to_look_again(emulator, client):
    emulator.faults = Faults(http_errors={"get": HttpError(429, retry_seconds=90, quota="looks")})
    seen = client.look("batches/x")
    assert isinstance(seen, Unreachable)
    assert seen.retry_after == 90
    assert "looks" in seen.detail


def test_a_bad_key_is_refused_on_every_way(emulator, connect, requests):
    client = connect(key="invalid-key")
    with pytest.raises(CredentialsRefused, match="API key not valid"):
        create(client, "files/x")
    with pytest.raises(CredentialsRefused):
        client.upload(requests, file_id="a", display_name="a")
    with pytest.raises(CredentialsRefused):
        client.list_jobs()
    with pytest.raises(CredentialsRefused):
        client.test()
    with pytest.raises(CredentialsRefused):
        client.download("files/batch-x", io.BytesIO())
    assert isinstance(client.look("batches/x"), Refused)
    assert emulator.calls["create"] == 1


def test_the_environment_cannot_send_requests_elsewhere(emulator, connect, uploaded, monkeypatch):
    for name, value in {
        "GOOGLE_GENAI_USE_VERTEXAI": "true", "GOOGLE_CLOUD_PROJECT": "p", "GOOGLE_CLOUD_LOCATION": "us-central1",
        "GOOGLE_API_KEY": "another", "GEMINI_API_KEY": "third", "GOOGLE_GEMINI_BASE_URL": NOBODY,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    create(connect(), uploaded)
    assert emulator.jobs_created == 1
    assert {seen.headers["x-goog-api-key"] for seen in emulator.requests if seen.call == "create"} == {"test-key"}


# Looking


def test_a_look_tells_state_counts_and_results(emulator, client, uploaded):
    name = create(client, uploaded)
    seen = client.look(name)
    assert isinstance(seen, Job)
    assert (seen.phase, seen.state, seen.counts.done, seen.counts.total) == (Phase.SUCCEEDED, "SUCCEEDED", 3, 3)
    assert (seen.display_name, seen.input_file, seen.model) == ("agb1.x", uploaded, MODEL)
    assert abs((seen.created_at - datetime.now(UTC)).total_seconds()) < 60
    assert seen.results


def test_the_error_of_a_failed_job_is_seen(emulator, client, uploaded):
    name = create(client, uploaded)
    emulator.set_state(name, "FAILED", {"code": 13, "message": "broken inside"})
    seen = client.look(name)
    assert (seen.phase, seen.error.code, seen.error.message) == (Phase.FAILED, 13, "broken inside")


@pytest.mark.parametrize("fault", ["output_only_in_response", "output_only_in_metadata"])
def test_results_are_found_where_the_service_puts_them(emulator, client, uploaded, fault):
    name = create(client, uploaded)
    emulator.faults = Faults(**{fault: True})
    assert client.look(name).results


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        ({"http_errors": {"get": HttpError(404)}}, Gone),
        ({"http_errors": {"get": HttpError(403)}}, Gone),
        ({"http_errors": {"*": HttpError(403)}}, Refused),
        ({"http_errors": {"get": HttpError(404, html=True)}}, Unreachable),
        ({"http_errors": {"get": HttpError(429)}}, Unreachable),
        ({"http_errors": {"get": HttpError(503)}}, Unreachable),
        ({"drop_before": {"get": 1}}, Unreachable),
        ({"drop_after": {"get": 1}}, Unreachable),
    ],
    ids=str,
)
def test_a_look_that_fails_tells_gone_from_refused_from_unreachable(emulator, client, uploaded, faults, kind):
    name = create(client, uploaded)
    emulator.faults = Faults(**faults)
    assert isinstance(client.look(name), kind)


def test_nobody_there_is_unreachable(connect):
    assert isinstance(connect(NOBODY).look("batches/x"), Unreachable)
    with pytest.raises(ServiceUnreachable):
        connect(NOBODY).list_jobs()


def test_all_jobs_are_listed_over_all_pages(client, uploaded):
    names = [create(client, uploaded) for _ in range(3)]
    from airflow_gemini_batch.core import rest

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest, "PAGE_SIZE", 2)
        assert sorted(job.name for job in client.list_jobs()) == sorted(names)


def test_a_list_that_breaks_off_is_an_error(emulator, client, uploaded, monkeypatch):
    from airflow_gemini_batch.core import rest

    monkeypatch.setattr(rest, "PAGE_SIZE", 1)
    for _ in range(3):
        create(client, uploaded)
    emulator.faults = Faults(http_errors={"list": HttpError(503, skip=2)})
    with pytest.raises(ServiceUnreachable):
        client.list_jobs()


def test_a_cancel_tells_what_became_of_the_job(connect, requests):
    with Emulator(job_seconds=999) as gemini:
        client = connect(gemini.url)
        name = create(client, client.upload(requests, file_id="a", display_name="a").name)
        assert str(client.cancel(name)) == f"{name}: CANCELLED; 0 of 3 requests were done and may be billed."
        assert gemini.jobs[0].state == "CANCELLED"


def test_a_redirect_of_a_look_is_not_followed(serve, connect):
    other = serve(lambda path, n: (200, {}, b'{"name":"batches/x","done":true}'), host="localhost")
    front = serve(lambda path, n: (302, {"Location": f"{other.url}{path}"}, b""))
    assert isinstance(connect(front.url).look("batches/x"), Unreachable)
    assert other.seen == []


# Files


def test_an_upload_arrives_byte_for_byte_under_the_chosen_name(emulator, client, requests):
    file = client.upload(requests, file_id="agb1-abc", display_name="shown")
    assert (file.name, file.size) == ("files/agb1-abc", requests.stat().st_size)
    assert emulator.read_file(file.name) == requests.read_bytes()
    assert 47 * 3600 < (file.expires_at or 0) - datetime.now(UTC).timestamp() < 49 * 3600
    (shown,) = emulator.files
    assert (shown["displayName"], shown["mimeType"]) == ("shown", "application/jsonl")


def test_any_kind_of_file_is_uploaded_and_told_with_address_state_and_hash(emulator, client, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"a picture")
    file = client.upload(path, file_id="agb1-abc", display_name="shown", mime_type="image/png")
    (there,) = emulator.files
    assert (there["mimeType"], there["uri"]) == ("image/png", file.uri)
    assert file == client.file(file.name) == replace(file, state="ACTIVE", found=False)
    assert file.sha256 == hashlib.sha256(b"a picture").hexdigest()
    assert client.upload(path, file_id="agb1-abc", display_name="shown") == replace(file, found=True)


def test_a_file_is_told_while_it_is_processed_and_when_that_failed(connect, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"a film")
    with Emulator(processing_seconds=60, faults=Faults(fail_files={"video/mp4"})) as emulator:
        client = connect(emulator.url)
        file = client.upload(path, file_id="a", display_name="a", mime_type="video/mp4")
        assert (file.state, file.error) == ("PROCESSING", "")
        emulator.clock.advance(61)
        failed = client.file(file.name)
        assert (failed.state, failed.error) == ("FAILED", "The file could not be processed.")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (base64.b64encode(b"AB" * 32).decode(), "ab" * 32),  # what the service sends: the digest in hex, encoded
        (base64.b64encode(bytes.fromhex("ab" * 32)).decode(), "ab" * 32),  # what its documents say
        (base64.b64encode(b"short").decode(), None),
        (base64.b64encode(b"xy" * 32).decode(), None),
        ("no base64!", None),
        ("é", None),
        ("", None),
        (None, None),
    ],
)
def test_a_hash_that_cannot_be_read_is_no_hash(told, expected):
    assert _sha256(told) == expected


def test_the_same_upload_again_is_the_file_that_is_there(emulator, client, requests):
    first = client.upload(requests, file_id="agb1-abc", display_name="x")
    again = client.upload(requests, file_id="agb1-abc", display_name="x")
    assert again.name == first.name
    assert len(emulator.files) == 1


def test_a_name_taken_by_what_cannot_be_seen_is_passed_by(emulator, client, requests):
    client.upload(requests, file_id="agb1-abc", display_name="x")
    emulator.faults = Faults(hide_files={"agb1-abc"})
    file = client.upload(requests, file_id="agb1-abc", display_name="x")
    assert file.name != "files/agb1-abc"
    emulator.faults = Faults()
    assert emulator.read_file(file.name) == requests.read_bytes()


@pytest.mark.parametrize(
    "faults",
    [
        {"http_errors": {"upload_start": HttpError(503, times=2)}},
        {"drop_before": {"upload_start": 1}},
        {"drop_after": {"upload_start": 1}},
        {"drop_before": {"upload_chunk": 1}},
        {"drop_after": {"upload_chunk": 1}},
        {"upload_chunk_no_status": 1},
    ],
    ids=str,
)
def test_an_upload_that_is_interrupted_is_tried_again(emulator, client, requests, faults):
    emulator.faults = Faults(**faults)
    file = client.upload(requests, file_id="agb1-abc", display_name="x")
    assert emulator.read_file(file.name) == requests.read_bytes()
    assert len(emulator.files) == 1


@pytest.fixture
def open_upload(serve, monkeypatch):
    """A service that refuses pieces so many times, and says each time that the upload is still open."""
    monkeypatch.setattr("google.genai._api_client.INITIAL_RETRY_DELAY", 0.01)
    pieces = Counter()

    def start(*statuses: int):
        def answer(path, number):
            if "upload_id=" not in path:
                return 200, {"X-Goog-Upload-URL": f"{served.url}/upload/v1beta/files?upload_id=1"}, b"{}"
            pieces["sent"] += 1
            if pieces["sent"] <= len(statuses):
                error = {"error": {"code": statuses[pieces["sent"] - 1], "message": "not now", "status": "UNAVAILABLE"}}
                return error["error"]["code"], {"X-Goog-Upload-Status": "active"}, json.dumps(error).encode()
            file = {"name": "files/agb1-abc", "sizeBytes": "5"}
            return 200, {"X-Goog-Upload-Status": "final"}, json.dumps({"file": file}).encode()

        served = serve(answer)
        return served

    return start


@pytest.mark.parametrize("statuses", [[503], [503] * 4, [500, 408], [400], [429]], ids=str)
def test_a_last_piece_that_is_not_taken_at_once_is_sent_again(connect, open_upload, requests, statuses):
    served = open_upload(*statuses)
    assert connect(served.url).upload(requests, file_id="agb1-abc", display_name="x").name == "files/agb1-abc"
    sent = [body for _, path, _, body in served.seen if "upload_id=" in path]
    assert sent == [requests.read_bytes()] * (len(statuses) + 1)


def test_a_quota_that_refuses_the_last_piece_is_told_although_the_upload_stays_open(connect, open_upload, requests):
    with pytest.raises(QuotaExceeded) as caught:
        connect(open_upload(*[429] * 50).url).upload(requests, file_id="agb1-abc", display_name="x")
    assert caught.value.phase == "upload"


def test_an_upload_is_not_tried_for_ever(emulator, client, requests):
    emulator.faults = Faults(http_errors={"upload_start": HttpError(503)})
    with pytest.raises(ServiceUnreachable):
        client.upload(requests, file_id="agb1-abc", display_name="x")
    assert ATTEMPTS <= emulator.calls["upload_start"] < 40


def test_a_file_is_there_or_not(client, uploaded):
    found = client.file(uploaded)
    assert isinstance(found, RemoteFile)
    assert found.name == uploaded
    assert client.file("files/gone") is None


@pytest.mark.parametrize(
    "faults", [{"http_errors": {"file_get": HttpError(503)}}, {"drop_before": {"file_get": 99}}], ids=str
)
def test_could_not_ask_for_a_file_is_not_gone(emulator, client, uploaded, faults):
    emulator.faults = Faults(**faults)
    with pytest.raises(ServiceUnreachable):
        client.file(uploaded)


def test_deleting_what_is_gone_is_no_error(emulator, client, uploaded):
    client.delete_file(uploaded)
    client.delete_file(uploaded)
    client.delete_job("batches/gone")
    assert emulator.files == []


# Downloads


@pytest.fixture
def results(emulator, client, uploaded) -> str:
    return client.look(create(client, uploaded)).results


def test_a_download_is_byte_for_byte_what_the_service_has(emulator, client, results):
    to = io.BytesIO(b"what was here before and is longer than nothing" * 1000)
    size = client.download(results, to)
    assert to.getvalue() == emulator.read_file(results)
    assert size == len(to.getvalue())


@pytest.mark.parametrize("how", ["drop", "chunked"])
@pytest.mark.parametrize("at", [0.0, 0.5, 0.99])
def test_a_download_that_breaks_starts_over(emulator, client, results, how, at):
    emulator.faults = Faults(truncate_download=Truncation(at=at, how=how, times=2))
    to = io.BytesIO()
    client.download(results, to)
    assert to.getvalue() == emulator.read_file(results)
    assert emulator.calls["download"] == 3


def test_a_download_that_always_breaks_is_an_error_and_worth_a_retry(emulator, client, results):
    emulator.faults = Faults(truncate_download=Truncation())
    with pytest.raises(DownloadBroken, match=results) as caught:
        client.download(results, io.BytesIO())
    assert caught.value.retryable
    assert emulator.calls["download"] == ATTEMPTS


def test_a_shorter_body_than_promised_is_never_taken_for_the_file(serve, connect):
    server = serve(lambda path, n: (200, {"Content-Length": "100"}, b"x" * 40))
    with pytest.raises(DownloadBroken):
        connect(server.url).download("files/batch-x", io.BytesIO())
    assert len(server.seen) == ATTEMPTS


@pytest.mark.parametrize("status", [500, 503, 408])
def test_a_service_in_trouble_is_asked_again(emulator, client, results, status):
    emulator.faults = Faults(http_errors={"download": HttpError(status, times=ATTEMPTS - 1)})
    to = io.BytesIO()
    client.download(results, to)
    assert to.getvalue() == emulator.read_file(results)


def test_a_download_refused_by_a_quota_is_left_to_whoever_waits(emulator, client, results):
    emulator.faults = Faults(http_errors={"download": HttpError(429, quota="downloads", retry_seconds=40)})
    with pytest.raises(QuotaExceeded) as caught:
        client.download(results, io.BytesIO())
    assert (caught.value.phase, caught.value.retry_after) == ("download", 40)
    assert "downloads" in caught.value.quota
    assert emulator.calls["download"] == 1


def test_a_file_that_is_gone_is_not_asked_for_again(emulator, client):
    with pytest.raises(RequestRefused) as caught:
        client.download("files/batch-gone", io.BytesIO())
    assert caught.value.code == 403
    assert emulator.calls["download"] == 1


def test_a_redirect_to_another_host_does_not_carry_the_key(serve, connect):
    other = serve(lambda path, n: (200, {}, b"the file"), host="localhost")
    front = serve(lambda path, n: (302, {"Location": f"{other.url}/storage/file"}, b""))
    to = io.BytesIO()
    assert connect(front.url).download("files/batch-x", to) == 8
    assert to.getvalue() == b"the file"
    assert front.seen[0][2]["x-goog-api-key"] == "test-key"
    ((_, path, headers, _),) = other.seen
    assert path == "/storage/file"
    assert not any("test-key" in value for value in headers.values())


def test_a_redirect_to_another_port_of_the_host_does_not_carry_the_key_either(serve, connect):
    """Another port is another server; browsers and HTTP clients call it another origin."""
    other = serve(lambda path, n: (200, {}, b"the file"))
    front = serve(lambda path, n: (302, {"Location": f"{other.url}/storage/file"}, b""))
    connect(front.url).download("files/batch-x", io.BytesIO())
    assert not any("test-key" in value for value in other.seen[0][2].values())


def test_a_redirect_within_the_service_keeps_the_key(serve, connect):
    def answer(path, n):
        return (302, {"Location": "/elsewhere"}, b"") if "download" in path else (200, {}, b"the file")

    server = serve(answer)
    connect(server.url).download("files/batch-x", io.BytesIO())
    assert [headers.get("x-goog-api-key") for _, _, headers, _ in server.seen] == ["test-key"] * 2


def test_redirects_in_a_circle_end(serve, connect):
    server = serve(lambda path, n: (302, {"Location": path}, b""))
    with pytest.raises(DownloadBroken, match="redirects"):
        connect(server.url).download("files/batch-x", io.BytesIO())


def test_a_compressed_body_is_not_asked_for(serve, connect):
    server = serve(lambda path, n: (200, {}, b"plain"))
    connect(server.url).download("files/batch-x", io.BytesIO())
    assert server.seen[0][2]["accept-encoding"] == "identity"


# The client itself


def test_a_closed_client_can_be_used_again(client, uploaded):
    client.close()
    assert client.file(uploaded)
    assert client.list_jobs() == []
    client.close()
    client.close()


def test_the_key_is_in_no_error_and_no_log(emulator, connect, requests, caplog):
    caplog.set_level(logging.DEBUG)
    client = connect(key="s3cret-key")
    emulator.faults = Faults(http_errors={"create": HttpError(400)})
    file = client.upload(requests, file_id="a", display_name="a").name
    with pytest.raises(RequestRefused) as caught:
        create(client, file)
    client.list_jobs()
    assert "s3cret-key" not in str(caught.value) + repr(client.account) + caplog.text


def test_an_upload_that_takes_its_time_tells_how_far_it_is(client, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("airflow_gemini_batch.core.remote_files.TELL_EVERY", 0.0)
    path = tmp_path / "r0-00007.jsonl"
    path.write_bytes(b'{"key":"a","request":{}}\n' * 800_000)  # 20 MB; the SDK sends 8 MiB at a time
    with caplog.at_level("INFO"):
        client.upload(path, file_id="large", display_name="large")
    told = [record.getMessage() for record in caplog.records if "uploaded" in record.getMessage()]
    assert told == [f"r0-00007.jsonl: {sent} of 20 MB uploaded" for sent in (0, 8, 17)]
