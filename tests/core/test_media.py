from __future__ import annotations

import io
import json
import struct
import threading
import time
import wave
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from airflow_gemini_batch.core import media, media_uploads
from airflow_gemini_batch.core.attempt import Attempt, Policy, Run, Services
from airflow_gemini_batch.core.flow import Waiting, advance
from airflow_gemini_batch.core.layout import OutputDirectory
from airflow_gemini_batch.core.media_files import playable, safe_name
from airflow_gemini_batch.core.media_types import SERVICE_TYPES, is_remote, media_type
from airflow_gemini_batch.core.names import RunId
from airflow_gemini_batch.core.plan import Plan, Round
from airflow_gemini_batch.core.requests import Request, Spec
from airflow_gemini_batch.core.shards import write_shards
from airflow_gemini_batch.emulator import Emulator, Faults, HttpError, Options
from airflow_gemini_batch.exceptions import (
    MediaUnreadable,
    QuotaExceeded,
    RequestRefused,
    ServiceUnreachable,
    SourceUnreadable,
    TooManyFailedRows,
)

HOUR = 3600.0
MODEL = "gemini-2.5-flash"


def png(shade: int = 0) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header, pixels = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), zlib.compress(bytes([0, shade, shade, shade]))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>"
WAV = (
    b"RIFF"
    + struct.pack("<I", 40)
    + b"WAVEfmt "
    + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 16000, 2, 16)
    + b"data\4\0\0\0\0\0\0\0"
)


def asking(key: str, *uris: Any, keep: dict[str, Any] | None = None) -> Request:
    """A request as the builder makes it: media first, under the URIs that the user wrote, then the text."""
    uris = tuple(map(str, uris))
    parts: list[dict[str, Any]] = [
        {"fileData": {"fileUri": uri} | ({"mimeType": kind} if (kind := media_type(uri)) else {})} for uri in uris
    ]
    parts.append({"text": f"{key}: what is this? é\u2028"})
    line = orjson.dumps(
        {"key": key, "request": {"contents": [{"role": "user", "parts": parts}]}}, option=orjson.OPT_APPEND_NEWLINE
    )
    return Request(key, line, keep or {}, media=tuple(uri for uri in uris if not is_remote(uri)))


@pytest.fixture
def plan(make_run):
    """A run whose plan asks these requests."""

    def commit(requests: list[Request], **settings: Any) -> Any:
        run = make_run(**settings)
        work = run.output.work("work")
        shards = write_shards(((one, one.key) for one in requests), work, 0, run.policy.limits)
        Round(0, run.policy.max_rounds - 1, shards).commit(work)
        at, spec = "2026-01-01T00:00:00Z", run.spec.to_dict()
        assert Plan(1, "work", run.id, spec, len(requests), {}, at, run.clears).commit(run.output)
        return run

    return commit


@pytest.fixture
def services(client, emulator):
    """The emulator's clock is the only one, and every pause moves it."""
    return Services(client, lambda: emulator.clock.now() / 1e9, emulator.clock.advance)


@pytest.fixture
def pictures(tmp_path):
    """Make so many different pictures."""

    def make(count: int) -> list[Path]:
        paths = [tmp_path / f"picture {n}.png" for n in range(count)]
        for n, path in enumerate(paths):
            path.write_bytes(png(n))
        return paths

    return make


def landed(manifest: Any) -> dict[str, dict[str, Any]]:
    lines = [line for name in manifest.files for line in Path(name).read_bytes().split(b"\n") if line]
    rows = {row["key"]: row for row in map(json.loads, lines)}
    assert len(rows) == len(lines) == manifest.rows == sum(manifest.counts.values())
    return rows


def uploads(emulator: Emulator) -> list[dict[str, Any]]:
    """The media that are at the service."""
    return [one for one in emulator.files if one["source"] == "UPLOADED" and one["mimeType"] != "application/jsonl"]


def sent(emulator: Emulator) -> list[list[dict[str, Any]]]:
    """What each input file that is still there asks, oldest first."""
    files = [one for one in emulator.files if one["source"] == "UPLOADED" and one["mimeType"] == "application/jsonl"]
    return [[json.loads(line) for line in emulator.read_file(one["name"]).splitlines()] for one in files]


def failing(run, services, finish) -> Any:
    """The manifest of a run that is landed and failed."""
    from airflow_gemini_batch.core.manifest import Manifest

    with pytest.raises(TooManyFailedRows):
        finish(run, services)
    return Manifest.load(run.output)


# Names


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a/b.PNG", "image/png"),
        ("/data/a.tar/b.jpeg", "image/jpeg"),
        ("gs://bucket/x.webp", "image/webp"),
        ("a b.heic", "image/heic"),
        ("https://example.com/a.pdf?version=1.0#page.2", "application/pdf"),
        ("/data/what? yes #1.mp3", "audio/mp3"),
        ("x.opus", "audio/ogg"),
        ("x.mkv", "video/x-matroska"),
        ("x.3gp", "video/3gpp"),
        ("notes.md", "text/markdown"),
        ("x.zip", "application/zip"),
        ("x.csv.gz", None),
        ("s3://bucket.png/x", None),
        ("https://example.com", None),
        ("x", None),
        (".png", None),
        ("x.", None),
        ("x.nothing-known", None),
        ("", None),
    ],
)
def test_a_suffix_tells_what_a_file_is(uri, expected):
    assert media_type(uri) == expected


def test_every_type_that_the_service_documents_has_a_suffix():
    documented = {
        "image/png", "image/jpeg", "image/webp", "image/heic", "image/heif", "audio/wav", "audio/mp3", "audio/aiff",
        "audio/aac", "audio/ogg", "audio/flac", "video/mp4", "video/mpeg", "video/mov", "video/avi", "video/x-flv",
        "video/mpg", "video/webm", "video/wmv", "video/3gpp", "application/pdf", "text/plain", "text/html", "text/css",
        "text/csv", "text/markdown", "text/xml", "text/rtf", "text/javascript", "text/x-python",
    }  # fmt: skip
    assert documented <= set(SERVICE_TYPES.values())


@given(st.text())
def test_no_uri_is_too_odd_to_be_told(uri):
    assert media_type(uri) is None or "/" in media_type(uri)
    assert is_remote(f"https://generativelanguage.googleapis.com/v1beta/files/{uri}") or not uri.isalnum()
    assert not is_remote(f"/data/{uri}")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("https://generativelanguage.googleapis.com/v1beta/files/abc-123", True),
        ("https://generativelanguage.googleapis.com/files/abc", True),
        ("https://www.youtube.com/watch?v=9hE5-98ZeCg", True),
        ("https://youtu.be/9hE5-98ZeCg?t=3", True),
        ("https://youtube.com/shorts/abc", True),
        ("https://www.youtube.com/", False),
        ("https://youtube.com.example.org/watch?v=1", False),
        ("https://example.com/files/abc.png", False),
        ("s3://bucket/files/a.png", False),
        ("files/abc", False),
        ("", False),
    ],
)
def test_what_the_service_opens_by_itself_is_told_apart(uri, expected):
    assert is_remote(uri) is expected


# What is sent


def test_pictures_documents_and_sounds_are_uploaded_and_asked_about(tmp_path, emulator, plan, finish, services):
    contents = {"a.png": png(), "b.pdf": PDF, "c.wav": WAV}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    requests = [asking(name, tmp_path / name, keep={"k": name}) for name in contents]
    requests += [asking("all", *(tmp_path / name for name in contents)), Request("none", b"", {}, "nothing to say")]
    text_only = asking("text")
    manifest = finish(plan([*requests, text_only], delete_remote="never"), services)
    rows = landed(manifest)
    assert {key: row["status"] for key, row in rows.items()} == {
        "a.png": "ok", "b.pdf": "ok", "c.wav": "ok", "all": "ok", "none": "empty", "text": "ok",
    }  # fmt: skip
    by_uri = {one["uri"]: one for one in uploads(emulator)}
    assert {one["mimeType"]: emulator.read_file(one["name"]) for one in by_uri.values()} == {
        "image/png": png(), "application/pdf": PDF, "audio/wav": WAV,
    }  # fmt: skip
    # Nothing else of the lines has changed.
    (lines,) = sent(emulator)
    for line, request in zip(lines, [*requests[:4], text_only], strict=True):
        planned = json.loads(request.line)
        for part, original in zip(
            line["request"]["contents"][0]["parts"], planned["request"]["contents"][0]["parts"], strict=True
        ):
            if "fileData" in part:
                there = by_uri[part["fileData"].pop("fileUri")]
                source = original["fileData"].pop("fileUri")
                assert emulator.read_file(there["name"]) == Path(source).read_bytes()
                assert there["mimeType"] == part["fileData"]["mimeType"]
        assert line == planned
    assert all(one["displayName"].startswith("agb1.") for one in by_uri.values())


def test_one_content_under_forty_names_is_uploaded_once(tmp_path, emulator, plan, finish, services):
    paths = [tmp_path / f"{n}.png" for n in range(40)]
    for path in paths:
        path.write_bytes(png())
    run = plan([asking(path.name, path) for path in paths], delete_remote="never", limits=_limits(10))
    manifest = finish(run, services)
    assert manifest.counts["ok"] == 40
    assert len(manifest.jobs) == 4
    assert len(uploads(emulator)) == 1
    assert emulator.calls["upload_start"] == 1 + 4, "one picture, four shards"


def _limits(requests: int) -> Any:
    from airflow_gemini_batch.core.shards import Limits

    return Limits(requests_per_job=requests)


def test_one_content_that_is_said_to_be_two_things_is_two_files(tmp_path, emulator, plan, finish, services):
    (tmp_path / "a.txt").write_text("# Title")
    (tmp_path / "a.md").write_text("# Title")
    run = plan([asking("x", tmp_path / "a.txt", tmp_path / "a.md")], delete_remote="never")
    assert finish(run, services).counts["ok"] == 1
    assert Counter(one["mimeType"] for one in uploads(emulator)) == {"text/plain": 1, "text/markdown": 1}


def test_what_the_service_opens_by_itself_is_sent_as_it_is(tmp_path, emulator, plan, finish, services, pictures):
    (picture,) = pictures(1)
    video = "https://www.youtube.com/watch?v=9hE5-98ZeCg"
    run = plan([asking("both", video, picture), asking("video", video)], delete_remote="never")
    assert finish(run, services).counts["ok"] == 2
    ((both, alone),) = sent(emulator)
    assert [part["fileData"]["fileUri"] for part in alone["request"]["contents"][0]["parts"][:1]] == [video]
    assert both["request"]["contents"][0]["parts"][0]["fileData"]["fileUri"] == video
    assert len(uploads(emulator)) == 1


def test_media_may_lie_in_an_object_store(tmp_path, emulator, plan, finish, services):
    """In what Airflow's ``ObjectStoragePath`` is made of, with its own ways to fail."""
    bucket = UPath(f"memory://{tmp_path.name}")
    for n in range(10):
        (bucket / f"{n}.png").write_bytes(png(n))
    uris = [f"memory://{tmp_path.name}/{n}.png" for n in range(11)]
    run = plan([asking(uri, uri) for uri in uris], delete_remote="never")
    manifest = finish(run, Services(services.client, services.clock, services.sleep, UPath))
    assert (manifest.counts["ok"], manifest.counts["error"]) == (10, 1)
    assert landed(manifest)[uris[10]]["error_message"].endswith(f"{uris[10]} cannot be used: it does not exist")
    assert {emulator.read_file(one["name"]) for one in uploads(emulator)} == {png(n) for n in range(10)}


def test_only_so_many_files_are_open_at_a_time(plan, finish, services, pictures):
    paths, lock, open_now, most = pictures(30), threading.Lock(), 0, 0

    class Counted:
        def __init__(self, uri: str) -> None:
            self.path, self.name = Path(uri), "x.png"

        def open(self, mode: str) -> Any:
            nonlocal open_now, most
            file, close = self.path.open(mode), None
            with lock:
                open_now += 1
                most = max(most, open_now)
            time.sleep(0.01)
            close = file.close

            def closed() -> None:
                nonlocal open_now
                with lock:
                    open_now -= not file.closed
                close()

            class File:
                read, seek, tell = file.read, file.seek, file.tell

                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: Any) -> None:
                    closed()

            return File()

    watched = Services(services.client, services.clock, services.sleep, Counted)
    assert finish(plan([asking(path.name, path) for path in paths]), watched).counts["ok"] == 30
    assert 1 < most <= media_uploads.AT_ONCE


# What cannot be used


BAD = {
    "missing": ("gone.png", None, "it does not exist"),
    "below a file": ("picture 0.png/x.png", None, "it does not exist"),
    "empty": ("empty.png", b"", "it is empty"),
    "too large": ("large.png", b"x" * 3000, "it is larger than 2,000 bytes"),
    "of no kind": ("picture", png(200), "its name does not tell what it is"),
    "refused": ("x.zip", b"PK", "the service refused it: HTTP 400 INVALID_ARGUMENT: Unsupported MIME type"),
    "failed": ("x.mp4", b"no video", "the service could not process it: The file could not be processed."),
    "a name with a null": ("a\0.png", None, "its name holds a null character"),
    "a name too long": ("x" * 300 + ".png", None, "its name is too long"),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_bad_file_of_ten_costs_its_row_and_no_other(tmp_path, plan, finish, connect, pictures, monkeypatch, kind):
    monkeypatch.setattr(media_uploads, "API_FILE_BYTES", 2000)
    name, content, reason = BAD[kind]
    bad = tmp_path / name
    if content is not None:
        bad.write_bytes(content)
    good = pictures(9)
    with Emulator(
        options=Options(refused_mime_types=("application/zip",)), faults=Faults(fail_files={"video/mp4"})
    ) as emulator:
        client = connect(emulator.url)
        requests = [asking(path.name, path) for path in good]
        requests.insert(4, asking("bad", good[0], bad))
        manifest = finish(plan(requests), Services(client))
        rows = landed(manifest)
        assert manifest.counts | {"ok": 9, "error": 1} == manifest.counts
        assert manifest.rounds == emulator.jobs_created == 1
        assert emulator.jobs[0].request_count == manifest.jobs[0]["requests"] == 9
        assert str(bad) in rows["bad"]["error_message"]
        assert reason in rows["bad"]["error_message"]
        assert (rows["bad"].get("job"), rows["bad"].get("error_code")) == (None, None)
        assert all(row["job"] for key, row in rows.items() if key != "bad")
        assert uploads(emulator) == [], "also what could not be processed is removed"


def test_a_directory_is_no_medium(tmp_path, plan, finish, services, pictures):
    (tmp_path / "album.png").mkdir()
    manifest = finish(plan([asking("good", *pictures(1)), asking("bad", tmp_path / "album.png")]), services)
    assert "it is a directory" in landed(manifest)["bad"]["error_message"]


def test_when_no_row_can_be_sent_nothing_is_created(tmp_path, emulator, plan, finish, services):
    run = plan([asking(str(n), tmp_path / f"{n}.png") for n in range(3)])
    manifest = failing(run, services, finish)
    assert {row["status"] for row in landed(manifest).values()} == {"error"}
    assert (emulator.calls["create"], emulator.calls["upload_start"]) == (0, 0)
    assert (manifest.rounds, manifest.jobs) == (1, ())
    # Asked for again, it says the same, and sends as little.
    assert landed(failing(run, services, finish)) == landed(manifest)
    assert emulator.calls["create"] == 0


def test_a_slot_whose_rows_cannot_be_sent_does_not_hold_up_the_others(
    tmp_path, emulator, plan, finish, services, pictures
):
    requests = [asking("gone", tmp_path / "gone.png"), *(asking(path.name, path) for path in pictures(2))]
    manifest = finish(plan(requests, limits=_limits(1)), services)
    assert (manifest.counts["ok"], manifest.counts["error"], emulator.jobs_created) == (2, 1, 2)


def test_a_file_that_changes_while_it_is_read_is_not_sent_as_another(emulator, plan, finish, services, pictures):
    steady, changing = pictures(2)
    opened = Counter()

    def open_uri(uri: str) -> Path:
        opened[uri] += 1
        if uri == str(changing) and opened[uri] == 2:  # read once to be hashed, once to be uploaded
            changing.write_bytes(png(99))
        return Path(uri)

    watched = Services(services.client, services.clock, services.sleep, open_uri)
    manifest = finish(plan([asking("steady", steady), asking("changing", changing)], delete_remote="never"), watched)
    assert "it changed while it was read" in landed(manifest)["changing"]["error_message"]
    assert [emulator.read_file(one["name"]) for one in uploads(emulator)] == [png(0)]


def test_without_a_way_to_any_file_nothing_is_settled(emulator, plan, finish, services, pictures):
    def open_uri(uri: str) -> Path:
        raise PermissionError("Access Denied")

    run = plan([asking(path.name, path) for path in pictures(3)])
    with pytest.raises(SourceUnreadable, match="Access Denied"):
        finish(run, Services(services.client, services.clock, services.sleep, open_uri))
    assert emulator.calls["create"] == 0
    assert finish(run, services).counts["ok"] == 3


def test_a_slot_that_another_attempt_sent_meanwhile_is_not_settled_as_unsendable(
    emulator, plan, finish, services, pictures, monkeypatch
):
    """An orphan finds no file of its slot any more, while the attempt after it did."""
    emulator.faults = Faults(stuck="RUNNING")
    run = plan([asking(path.name, path) for path in pictures(2)])
    others = []

    def open_uri(uri: str) -> Path:
        if not others:
            others.append(advance(run, services, starting=True))
        raise FileNotFoundError(uri)

    orphan = Services(services.client, services.clock, services.sleep, open_uri)
    monkeypatch.setattr(media_uploads, "AT_ONCE", 1)
    reached = advance(run, orphan, starting=True)
    assert isinstance(reached, Waiting)
    assert reached.waits == others[0].waits
    emulator.faults = Faults()
    assert finish(run, services).counts["ok"] == 2
    assert emulator.jobs_created == 1


# What may pass


def test_storage_that_fails_for_a_while_is_worth_a_retry_and_nothing_is_sent(
    emulator, plan, finish, services, pictures
):
    def open_uri(uri: str) -> Path:
        if "2" in Path(uri).name:
            raise ConnectionResetError("the bucket went away")
        return Path(uri)

    run = plan([asking(path.name, path) for path in pictures(4)])
    with pytest.raises(MediaUnreadable, match=r"picture 2\.png.*the bucket went away") as caught:
        finish(run, Services(services.client, services.clock, services.sleep, open_uri))
    assert caught.value.retryable
    assert (emulator.calls["create"], emulator.calls["upload_start"]) == (0, 0)
    assert finish(run, services).counts["ok"] == 4


def test_storage_that_fails_leaves_the_jobs_that_run_alone(plan, services, pictures):
    def open_uri(uri: str) -> Path:
        if "1" in Path(uri).name:
            raise ConnectionResetError("the bucket went away")
        return Path(uri)

    run = plan([asking(path.name, path) for path in pictures(2)], limits=_limits(1))
    reached = advance(run, Services(services.client, services.clock, services.sleep, open_uri), starting=True)
    assert isinstance(reached, Waiting)
    assert len(reached.waits) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (HttpError(503), ServiceUnreachable),
        (HttpError(429), QuotaExceeded),
        (HttpError(403), RequestRefused),
        (HttpError(400, rpc_status="FAILED_PRECONDITION"), RequestRefused),
    ],
)
def test_a_service_that_takes_no_uploads_settles_no_row(emulator, plan, finish, services, pictures, error, raised):
    run = plan([asking(path.name, path) for path in pictures(3)], quota_timeout=0)
    emulator.faults = Faults(http_errors={"upload_start": error})
    with pytest.raises(raised):
        finish(run, services)
    assert emulator.calls["create"] == 0
    emulator.faults = Faults()
    assert finish(run, services).counts["ok"] == 3


def test_what_was_uploaded_before_a_failure_is_not_uploaded_again(emulator, plan, finish, services, pictures):
    run = plan([asking(path.name, path) for path in pictures(20)], quota_timeout=0)
    emulator.faults = Faults(http_errors={"upload_start": HttpError(429, skip=12)})
    with pytest.raises(QuotaExceeded):
        finish(run, services)
    emulator.faults = Faults()
    assert len(uploads(emulator)) == 12
    before = emulator.calls["upload_start"]
    assert finish(run, services).counts["ok"] == 20
    assert emulator.calls["upload_start"] - before == 8 + 1


def test_a_stumbling_service_is_asked_again(emulator, plan, finish, services, pictures):
    emulator.faults = Faults(http_errors={"file_get": HttpError(503, times=3), "upload_start": HttpError(503, times=2)})
    assert finish(plan([asking(path.name, path) for path in pictures(3)]), services).counts["ok"] == 3


# Processing


@pytest.fixture
def slow(connect, tmp_path):
    """A service that processes videos for so many seconds, and services whose pauses move its clock."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(seconds: float) -> Any:
            options = Options(processed_mime_types=("video/",))
            emulator = stack.enter_context(Emulator(processing_seconds=seconds, options=options))
            (tmp_path / "film.mp4").write_bytes(b"a film")
            return emulator, Services(connect(emulator.url), lambda: emulator.clock.now() / 1e9, emulator.clock.advance)

        yield make


def test_a_film_is_asked_about_once_it_is_processed(tmp_path, slow, plan, finish, pictures):
    emulator, services = slow(300)
    run = plan([asking("film", tmp_path / "film.mp4"), asking("picture", *pictures(1))])
    assert finish(run, services).counts["ok"] == 2
    assert emulator.calls["create"] == 1


def test_a_film_that_is_processed_for_ever_costs_its_row(tmp_path, slow, plan, finish, pictures):
    emulator, services = slow(10 * HOUR)
    manifest = finish(plan([asking("film", tmp_path / "film.mp4"), asking("picture", *pictures(1))]), services)
    assert "still processing it after 30 minutes" in landed(manifest)["film"]["error_message"]
    assert manifest.counts["ok"] == 1
    assert uploads(emulator) == []


# 48 hours


def refused_at_first(run, services, emulator) -> None:
    """An attempt whose media are uploaded and whose job is not created."""
    emulator.faults = Faults(http_errors={"create": HttpError(429)})
    assert advance(run, services, starting=True).waits == ()  # type: ignore[union-attr]
    emulator.faults = Faults()


@pytest.mark.parametrize(
    ("hours", "timeout", "times"), [(11, 48, 1), (13, 48, 2), (13, 24, 1), (25, 24, 2), (49, 48, 2)]
)
def test_uploads_are_used_again_while_they_live_long_enough(
    emulator, plan, finish, services, pictures, hours, timeout, times
):
    run = plan([asking(path.name, path) for path in pictures(3)], timeout=timeout * HOUR)
    refused_at_first(run, services, emulator)
    before = emulator.calls["upload_start"]
    emulator.clock.advance(hours * HOUR)
    assert finish(run, services).counts["ok"] == 3
    again = emulator.calls["upload_start"] - before
    # Media uploaded anew have other addresses, so the shard is another, too.
    assert again == (4 if times == 2 else 0 if hours < 47 else 1)
    assert uploads(emulator) == [], "the older uploads are removed, too"


def test_a_job_has_no_more_time_than_its_media(emulator, plan, services, pictures, caplog):
    caplog.set_level("INFO")
    emulator.faults = Faults(stuck="RUNNING")
    run = plan([asking(path.name, path) for path in pictures(2)])
    refused_at_first(run, services, emulator)
    emulator.clock.advance(10 * HOUR)
    emulator.faults = Faults(stuck="RUNNING")
    (wait,) = advance(run, services, starting=True).waits  # type: ignore[union-attr]
    assert wait.deadline - services.clock() == pytest.approx(38 * HOUR, abs=60)
    assert "gets 38.0 h instead of 48.0 h" in caplog.text
    emulator.clock.advance(37 * HOUR)
    for starting in (True, False):
        (later,) = advance(run, services, starting=starting).waits  # type: ignore[union-attr]
        assert later == wait, "every attempt computes the same deadline"
    emulator.clock.advance(1.1 * HOUR)
    advance(run, services)
    assert emulator.calls["cancel"] == 1


def test_an_adopted_job_has_no_more_time_than_its_media(emulator, plan, services, pictures):
    emulator.faults = Faults(stuck="RUNNING")
    run = plan([asking(path.name, path) for path in pictures(2)])
    (wait,) = advance(run, services, starting=True).waits  # type: ignore[union-attr]
    attempt = Attempt(run, Plan.current(run.output), services)  # type: ignore[arg-type]
    (shard,) = Round.load_all(attempt.work)[0].shards
    attempt.work.step(shard.slot, "job").unlink()  # as if the attempt had died before it was written
    (again,) = advance(run, services, starting=True).waits  # type: ignore[union-attr]
    submitted = attempt.ledger.read(shard.slot).submitted
    assert submitted is not None
    assert submitted.adopted
    assert again.job == wait.job
    assert again.deadline == pytest.approx(wait.deadline)
    assert emulator.jobs_created == 1


def test_a_service_that_keeps_files_for_less_is_used_all_the_same(connect, plan, finish, pictures):
    with Emulator(options=Options(file_seconds=2 * HOUR)) as emulator:
        run = plan([asking(path.name, path) for path in pictures(2)])
        services = Services(connect(emulator.url), lambda: emulator.clock.now() / 1e9, emulator.clock.advance)
        assert finish(run, services).counts["ok"] == 2
        assert emulator.calls["upload_start"] == 2 + 1


def test_the_next_round_uses_the_same_uploads(emulator, plan, finish, services, pictures):
    paths = pictures(4)
    emulator.faults = Faults(fail_keys={path.name: {"times": 1} for path in paths[:2]})
    manifest = finish(plan([asking(path.name, path) for path in paths]), services)
    assert (manifest.counts["ok"], manifest.rounds) == (4, 2)
    assert emulator.calls["upload_start"] == 4 + 2, "four pictures, two shards"
    assert uploads(emulator) == []


def test_the_next_round_after_two_days_uploads_anew(emulator, plan, finish, services, pictures):
    paths = pictures(3)
    emulator.faults = Faults(stuck="RUNNING")
    run = plan([asking(path.name, path) for path in paths], timeout=40 * HOUR)
    advance(run, services, starting=True)
    emulator.clock.advance(41 * HOUR)
    advance(run, services)  # past its deadline: cancelled
    emulator.faults = Faults()
    manifest = finish(run, services)
    assert (manifest.counts["ok"], emulator.jobs_created) == (3, 2)
    assert emulator.calls["upload_start"] == 3 + 1 + 3 + 1
    assert uploads(emulator) == []


def test_media_that_somebody_else_deleted_are_uploaded_anew_for_the_next_round(
    emulator, client, plan, finish, services, pictures
):
    emulator.faults = Faults(stuck="RUNNING")
    run = plan([asking("text"), *(asking(path.name, path) for path in pictures(3))])
    advance(run, services, starting=True)
    for one in uploads(emulator)[:2]:
        client.delete_file(one["name"])
    emulator.faults = Faults()
    manifest = finish(run, services)
    assert (manifest.counts["ok"], manifest.rounds) == (4, 2)
    assert [job["requests"] for job in manifest.jobs] == [4, 2]
    assert uploads(emulator) == []


def test_a_row_without_media_that_is_not_allowed_is_not_sent_again(emulator, plan, finish, services, pictures):
    emulator.faults = Faults(fail_keys={"text": {"code": 7, "message": "no"}})
    manifest = finish(plan([asking("text"), asking("picture", *pictures(1))]), services)
    assert (manifest.counts["ok"], manifest.counts["error"], manifest.rounds) == (1, 1, 1)


# Removal


@pytest.mark.parametrize(("delete_remote", "left"), [("inputs", 0), ("all", 0), ("never", 3)])
def test_media_are_removed_at_the_end_as_asked(emulator, plan, finish, services, pictures, delete_remote, left):
    run = plan([asking(path.name, path) for path in pictures(3)], delete_remote=delete_remote, limits=_limits(1))
    finish(run, services)
    assert len(uploads(emulator)) == left
    if delete_remote == "all":
        assert emulator.files == []


def test_media_are_not_removed_while_another_slot_needs_them(emulator, plan, services, pictures):
    (picture,) = pictures(1)
    run = plan([asking("a", picture), asking("b", picture)], limits=_limits(1))
    emulator.faults = Faults(stuck="RUNNING")
    first, _second = advance(run, services, starting=True).waits  # type: ignore[union-attr]
    emulator.set_state(first.job, "SUCCEEDED")
    assert isinstance(advance(run, services), Waiting)
    assert len(uploads(emulator)) == 1


def test_media_of_a_failed_run_are_removed_and_uploaded_anew_when_it_is_cleared(
    emulator, plan, finish, services, pictures
):
    paths = pictures(3)
    run = plan([asking(path.name, path) for path in paths], max_rounds=1)
    emulator.faults = Faults(fail_ratio=1.0)
    failing(run, services, finish)
    assert uploads(emulator) == []
    emulator.faults = Faults()
    before = emulator.calls["upload_start"]
    assert finish(run, services).counts["ok"] == 3
    assert emulator.calls["upload_start"] - before == 3 + 1
    assert uploads(emulator) == []


def test_media_of_a_job_that_is_refused_are_removed_and_uploaded_anew_when_it_is_cleared(
    emulator, plan, finish, services, pictures
):
    run = plan([asking(path.name, path) for path in pictures(3)])
    emulator.faults = Faults(http_errors={"create": HttpError(400, message="no such setting")})
    with pytest.raises(RequestRefused, match="no such setting"):
        finish(run, services)
    assert emulator.files == []
    emulator.faults = Faults()
    assert finish(run, services).counts["ok"] == 3
    assert uploads(emulator) == []


def test_media_of_a_job_that_is_refused_stay_while_another_job_needs_them(emulator, plan, finish, services, pictures):
    (picture,) = pictures(1)
    run = plan([asking("a", picture), asking("b", picture)], limits=_limits(1), delete_remote="inputs")
    emulator.faults = Faults(http_errors={"create": HttpError(400, skip=1)})
    assert len(advance(run, services, starting=True).waits) == 1
    assert len(uploads(emulator)) == 1
    emulator.faults = Faults()
    assert finish(run, services).counts["ok"] == 2
    assert uploads(emulator) == []


def test_a_refused_removal_is_no_reason_to_fail_and_is_tried_again(emulator, plan, finish, services, pictures, caplog):
    caplog.set_level("INFO")
    run = plan([asking(path.name, path) for path in pictures(3)])
    emulator.faults = Faults(http_errors={"file_delete": HttpError(503)})
    assert finish(run, services).counts["ok"] == 3
    assert "3 of 3 media could not be deleted" in caplog.text
    assert len(uploads(emulator)) == 3
    emulator.faults = Faults()
    finish(run, services)
    assert uploads(emulator) == []
    before = emulator.calls["file_delete"]
    finish(run, services)
    assert emulator.calls["file_delete"] == before, "what is removed is not removed again"


def test_media_of_a_plan_that_is_replaced_are_removed(emulator, plan, finish, make_run, services, pictures):
    run = plan([asking(path.name, path) for path in pictures(3)])
    emulator.faults = Faults(stuck="RUNNING")
    advance(run, services, starting=True)
    assert len(uploads(emulator)) == 3
    emulator.faults = Faults()
    assert finish(make_run(reuse="never", clears=1), services).counts["ok"] == 3
    assert uploads(emulator) == []


@given(st.lists(st.lists(st.sampled_from(["good", "other", "gone", "empty"]), max_size=3), min_size=1, max_size=6))
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_sent_or_says_why_not(tmp_path_factory, client, rows):
    directory = tmp_path_factory.mktemp("media")
    for name, data in {"good": png(1), "other": png(2), "empty": b""}.items():
        (directory / f"{name}.png").write_bytes(data)
    run = Run(RunId("d", "t", str(directory)), list, Spec(MODEL), OutputDirectory(directory / "out"), Policy())
    work = run.output.work("work")
    asked = [asking(str(n), *(directory / f"{name}.png" for name in row)) for n, row in enumerate(rows)]
    (shard,) = write_shards(((one, one.key) for one in asked), work, 0, run.policy.limits)
    attempt = Attempt(run, Plan(1, "work", run.id, {}, len(rows), {}, ""), Services(client))
    prepared = media.prepare(attempt, shard)
    left = media.unsendable(attempt, shard)
    lines = [json.loads(line) for line in work.prepared(shard.slot, prepared.name, "sent").read_bytes().splitlines()]
    assert set(left) == {str(n) for n, row in enumerate(rows) if {"gone", "empty"} & set(row)}
    assert [line["key"] for line in lines] == [str(n) for n in range(len(rows)) if str(n) not in left]
    assert (prepared.requests, prepared.unsendable) == (len(lines), len(left))
    for line in lines:
        *named, text = line["request"]["contents"][0]["parts"]
        assert len(named) == len(rows[int(line["key"])])
        assert all(one["fileData"]["fileUri"].startswith("https://") for one in named)
        assert text == json.loads(asked[int(line["key"])].line)["request"]["contents"][0]["parts"][-1]


@pytest.mark.parametrize(
    "mime_type", ["audio/L16", "audio/L16;rate=0;channels=0", "audio/L16;rate=99999999999;channels=999"]
)
def test_speech_of_a_type_that_says_nonsense_plays_all_the_same(mime_type):
    suffix, data = playable(mime_type, b"\1\0" * 10)
    assert suffix == ".wav"
    with wave.open(io.BytesIO(data)) as sound:
        assert sound.getparams()[:4] == (1, 2, 24000, 10)


@pytest.mark.parametrize(
    ("mime_type", "suffix"),
    [
        ("image/png", ".png"), ("image/jpeg", ".jpg"), ("image/jpg", ".jpg"), ("IMAGE/WEBP; x=1", ".webp"),
        ("audio/wav", ".wav"), ("audio/x-wav", ".wav"), ("audio/wave", ".wav"), ("audio/webm", ".webm"),
        ("audio/mpeg", ".mp3"), ("audio/mp3", ".mp3"), ("audio/ogg", ".ogg"),
        ("video/mp4", ".mp4"), ("text/plain", ".txt"), ("../../x", ".bin"),
    ],
)  # fmt: skip
def test_a_file_of_an_answer_has_the_suffix_of_its_type_on_every_host(mime_type, suffix):
    assert playable(mime_type, b"data") == (suffix, b"data")


def hashed(key: str) -> str:
    return safe_name({"key": key})


def test_two_keys_never_share_a_file():
    keys = ["a/b", "a_b", hashed("a/b"), hashed(hashed("a/b")), "a b", "a", "a-0", "a~b", "ü", "é", "x" * 80, "x" * 81]
    names = [hashed(key) for key in keys] + [safe_name({"key": "a", "prompt": "b"})]
    assert len(set(names)) == len(names)


def test_speech_plays_at_the_rate_and_in_the_channels_that_its_type_says():
    _, data = playable("audio/L16;codec=pcm;rate=16000;channels=2", b"\1\0\2\0" * 10)
    with wave.open(io.BytesIO(data)) as sound:
        assert sound.getparams()[:4] == (2, 2, 16000, 10)
