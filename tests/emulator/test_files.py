"""Files: uploads in three protocols, names, expiry, quotas, downloads."""

from __future__ import annotations

import base64
import hashlib
import io
import os

import httpx
import pytest
from google.genai import errors

from airflow_gemini_batch.emulator import Faults, Options

START = {"X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start"}
HOURS = 3600.0


def start(raw, total: int | None, body: dict | None = None, path: str = "", **headers: str) -> httpx.Response:
    size = {} if total is None else {"X-Goog-Upload-Header-Content-Length": str(total)}
    return raw.http.post(f"{path}/upload/v1beta/files", headers={**START, **size, **headers}, json=body or {"file": {}})


def send(url: str, data: bytes, offset: int, command: str = "upload, finalize") -> httpx.Response:
    headers = {"X-Goog-Upload-Command": command, "X-Goog-Upload-Offset": str(offset)}
    return httpx.post(url, headers=headers, content=data)


@pytest.mark.parametrize("size", [0, 10, 8 << 20, (8 << 20) + 1, (16 << 20) + 5])
def test_the_sdk_uploads_any_size(client, gemini, size, tmp_path):
    data = os.urandom(size)
    path = tmp_path / "in.bin"
    path.write_bytes(data)
    file = client.files.upload(file=str(path), config={"mime_type": "application/jsonl", "display_name": "in"})
    assert gemini.read_file(file.name) == data
    assert (file.size_bytes or 0, file.mime_type, file.display_name) == (size, "application/jsonl", "in")
    assert (file.state.name, file.source.name) == ("ACTIVE", "UPLOADED")
    chunks = max(1, -(-size // (8 << 20)))
    assert gemini.calls == {"upload_start": 1, "upload_chunk": chunks}


def test_the_hash_is_base64_of_the_hex_text(client):
    data = b'{"key": "a"}\n'
    file = client.files.upload(file=io.BytesIO(data), config={"mime_type": "application/jsonl"})
    assert base64.b64decode(file.sha256_hash).decode() == hashlib.sha256(data).hexdigest()
    assert len(file.sha256_hash) == 88


def test_a_chosen_name_is_kept_and_a_second_use_is_a_409_at_the_last_step(client, gemini):
    config = {"mime_type": "text/plain", "name": "my-in"}
    assert client.files.upload(file=io.BytesIO(b"1"), config=config).name == "files/my-in"
    with pytest.raises(errors.ClientError) as caught:
        client.files.upload(file=io.BytesIO(b"2"), config=config)
    assert (caught.value.code, caught.value.status) == (409, "ALREADY_EXISTS")
    assert "my-in already exists" in caught.value.message
    assert gemini.calls["upload_start"] == 2
    assert gemini.read_file("files/my-in") == b"1"


@pytest.mark.parametrize("name", ["-a", "a-", "A", "a_b", "a" * 41, "a b", "ä"])
def test_names_that_break_the_rule_are_refused(raw, name):
    reply = start(raw, 1, {"file": {"name": f"files/{name}"}})
    assert (reply.status_code, reply.headers["x-goog-upload-status"]) == (400, "final")


@pytest.mark.parametrize("name", ["a", "a-b", "a" * 40, "0-9"])
def test_names_within_the_rule_are_taken(raw, name):
    assert start(raw, 1, {"file": {"name": f"files/{name}"}}).status_code == 200


def test_automatic_ids_have_twelve_characters(raw):
    assert len(raw.upload(b"x").removeprefix("files/")) == 12


@pytest.mark.parametrize("prefix", ["", "/proxy", "/a/b"])
def test_the_upload_url_keeps_the_callers_host_and_prefix(raw, gemini, prefix):
    reply = start(raw, 1, path=prefix, Host="gemini.example:1234")
    assert reply.headers["x-goog-upload-url"].startswith(
        f"http://gemini.example:1234{prefix}/upload/v1beta/files?upload_id="
    )


def test_chunks_need_no_key(raw):
    url = start(raw, 3).headers["x-goog-upload-url"]
    assert send(url, b"abc", 0).json()["file"]["sizeBytes"] == "3"


def test_a_wrong_offset_is_refused_and_the_upload_goes_on(raw):
    url = start(raw, 6).headers["x-goog-upload-url"]
    assert send(url, b"abc", 0, "upload").headers["x-goog-upload-status"] == "active"
    wrong = send(url, b"def", 5)
    assert (wrong.status_code, wrong.headers["x-goog-upload-status"]) == (400, "active")
    assert send(url, b"def", 3).json()["file"]["sizeBytes"] == "6"


@pytest.mark.parametrize("data", [b"abc", b"abcdefgh"])
def test_a_total_other_than_announced_is_refused(raw, gemini, data):
    url = start(raw, 6).headers["x-goog-upload-url"]
    reply = send(url, data, 0)
    assert reply.status_code == 400
    assert "x-goog-upload-status" in reply.headers
    assert gemini.files == []


def test_bytes_beyond_the_total_are_forgotten(raw):
    url = start(raw, 3).headers["x-goog-upload-url"]
    assert send(url, b"abcd", 0).status_code == 400
    file = send(url, b"xyz", 0).json()["file"]
    assert base64.b64decode(file["sha256Hash"]).decode() == hashlib.sha256(b"xyz").hexdigest()


def test_query_tells_how_much_has_come(raw):
    url = start(raw, 6).headers["x-goog-upload-url"]
    send(url, b"abcd", 0, "upload")
    reply = send(url, b"", 0, "query")
    assert (reply.status_code, reply.headers["x-goog-upload-size-received"]) == (200, "4")
    send(url, b"ef", 4)
    assert send(url, b"", 0, "query").headers["x-goog-upload-status"] == "final"


def test_an_upload_can_be_cancelled(raw):
    url = start(raw, 6).headers["x-goog-upload-url"]
    assert send(url, b"", 0, "cancel").headers["x-goog-upload-status"] == "cancelled"
    assert send(url, b"abcdef", 0).status_code == 404


def test_raw_and_multipart_uploads_make_the_same_file(raw, gemini):
    data = b'\r\n{"a": 1}\r\n--not-the-boundary\r\n'
    body = b"--b1\r\nContent-Type: application/json\r\n\r\n" + b'{"file": {"displayName": "d", "name": "files/two"}}'
    body += b"\r\n--b1\r\nContent-Type: application/jsonl\r\n\r\n" + data + b"\r\n--b1--\r\n"
    headers = {"X-Goog-Upload-Protocol": "multipart", "Content-Type": "multipart/related; boundary=b1"}
    file = raw.http.post("/upload/v1beta/files", headers=headers, content=body).json()["file"]
    assert (file["name"], file["displayName"], file["mimeType"]) == ("files/two", "d", "application/jsonl")
    assert gemini.read_file("files/two") == gemini.read_file(raw.upload(data)) == data


def test_int64_comes_as_a_string_or_a_number_in_either_spelling(raw):
    for size in ({"sizeBytes": "3"}, {"size_bytes": 3}, {"size_bytes": "3"}):
        url = start(raw, None, {"file": size}).headers["x-goog-upload-url"]
        assert send(url, b"abcd", 0).status_code == 400
        assert send(url, b"abc", 0).json()["file"]["sizeBytes"] == "3"


def test_a_file_is_processed_for_a_while(emulate, connect):
    gemini = emulate(processing_seconds=30)
    raw = connect(gemini)
    name = raw.upload(b"x")
    assert raw.json("GET", name)["state"] == "PROCESSING"
    gemini.clock.advance(31)
    assert raw.json("GET", name)["state"] == "ACTIVE"


def test_files_expire_after_two_days(raw, gemini):
    name = raw.upload(b"x")
    gemini.clock.advance(48 * HOURS - 60)
    assert raw.json("GET", name)["name"] == name
    gemini.clock.advance(61)
    reply = raw.http.get(f"/v1beta/{name}")
    assert (reply.status_code, reply.json()["error"]["status"]) == (403, "PERMISSION_DENIED")
    assert name.removeprefix("files/") in reply.json()["error"]["message"]
    assert raw.json("GET", "files") == {}


def test_unknown_and_deleted_files_are_a_403(raw, client):
    name = raw.upload(b"x")
    client.files.delete(name=name)
    for call in (lambda: client.files.get(name=name), lambda: client.files.delete(name="files/nope")):
        with pytest.raises(errors.ClientError) as caught:
            call()
        assert (caught.value.code, caught.value.status) == (403, "PERMISSION_DENIED")


def test_uploaded_files_cannot_be_downloaded(raw, client):
    name = raw.upload(b"x")
    with pytest.raises(errors.ClientError, match="cannot be downloaded"):
        client.files.download(file=name)


def test_the_list_is_paged_newest_first_and_stable_while_files_come(raw, client):
    names = [raw.upload(b"%d" % i) for i in range(5)]
    first = raw.json("GET", "files", params={"pageSize": 2})
    raw.upload(b"later")
    second = raw.json("GET", "files", params={"page_size": "2", "page_token": first["nextPageToken"]})
    third = raw.json("GET", "files", params={"pageSize": 2, "pageToken": second["nextPageToken"]})
    listed = [file["name"] for page in (first, second, third) for file in page["files"]]
    assert listed == names[::-1]
    assert "nextPageToken" not in third
    assert len(list(client.files.list(config={"page_size": 2}))) == 6


def test_a_wrong_page_token_is_refused(raw):
    assert raw.http.get("/v1beta/files?pageToken=!!").status_code == 400


def test_a_file_over_the_limit_and_a_full_project_are_refused(emulate, connect):
    raw = connect(emulate(options=Options(max_file_bytes=100, storage_bytes=250)))
    assert start(raw, 101).status_code == 400
    for _ in range(2):
        raw.upload(b"x" * 100)
    reply = start(raw, 100)
    assert (reply.status_code, reply.json()["error"]["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert start(raw, 50).status_code == 200


def test_the_limits_are_two_and_twenty_gigabytes(raw):
    assert start(raw, 2 << 30).status_code == 200
    assert start(raw, (2 << 30) + 1).status_code == 400
    assert Options().storage_bytes == 20 << 30


def test_a_refused_mime_type_ends_the_upload_with_an_error(emulate, sdk):
    client = sdk(emulate(options=Options(refused_mime_types=("jsonl",))))
    with pytest.raises(errors.ClientError, match="Unsupported MIME type: jsonl"):
        client.files.upload(file=io.BytesIO(b"x"), config={"mime_type": "jsonl"})


def test_hidden_files_look_missing(raw, gemini):
    name = raw.upload(b"x")
    gemini.faults = Faults(hide_files={name.removeprefix("files/")})
    assert raw.http.get(f"/v1beta/{name}").status_code == 403
    assert raw.json("GET", "files") == {}


def test_a_refused_chunk_is_sent_again_by_the_sdk(gemini, client, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _: None)
    gemini.faults = Faults(upload_chunk_no_status=2)
    file = client.files.upload(file=io.BytesIO(b"abc"), config={"mime_type": "text/plain"})
    assert gemini.read_file(file.name) == b"abc"
    assert gemini.calls["upload_chunk"] == 3


def test_a_broken_chunk_is_kept_as_far_as_it_came(gemini, raw):
    url = start(raw, 1 << 22).headers["x-goog-upload-url"]

    def broken():
        yield b"x" * (1 << 21)
        raise OSError("cable pulled")

    headers = {"X-Goog-Upload-Command": "upload", "X-Goog-Upload-Offset": "0", "Content-Length": str(1 << 22)}
    with pytest.raises(OSError, match="cable"):
        httpx.post(url, headers=headers, content=broken())
    for _ in range(100):
        received = int(send(url, b"", 0, "query").headers["x-goog-upload-size-received"])
        if received == 1 << 21:
            break
    rest = (1 << 22) - received
    assert send(url, b"x" * rest, received).json()["file"]["sizeBytes"] == str(1 << 22)


# Files that requests name


def _asking(uri: str, key: str = "a") -> dict:
    parts = [{"fileData": {"fileUri": uri, "mimeType": "image/png"}}, {"text": "What is this?"}]
    return {"key": key, "request": {"contents": [{"role": "user", "parts": parts}]}}


def test_a_row_may_name_an_uploaded_file_a_video_or_a_page(raw):
    uri = raw.json("GET", raw.upload(b"x"))["uri"]
    elsewhere = uri.replace("https://generativelanguage.googleapis.com", "http://127.0.0.1:8089")
    uris = (uri, elsewhere, "https://www.youtube.com/watch?v=9hE5-98ZeCg", "https://example.com/files")
    lines = raw.results(raw.create(*(_asking(uri, str(n)) for n, uri in enumerate(uris))))
    assert ["response" in line for line in lines] == [True] * 4


@pytest.mark.parametrize("uri", ["s3://bucket/a.png", "a.png", "gs://bucket/a.png", ""])
def test_a_row_that_names_what_the_service_cannot_open_fails_with_code_3(raw, uri):
    (line,) = raw.results(raw.create(_asking(uri)))
    assert line["error"]["code"] == 3


def test_a_row_that_names_a_missing_or_expired_file_fails_with_code_7(raw, gemini):
    name = raw.upload(b"x")
    uri = raw.json("GET", name)["uri"]
    gemini.clock.advance(49 * HOURS)
    lines = raw.results(raw.create(_asking(uri, "expired"), _asking(f"{uri}0", "unknown")))
    assert [line["error"]["code"] for line in lines] == [7, 7]
    assert "may not exist" in lines[0]["error"]["message"]


def test_a_row_that_names_a_file_still_processing_fails_with_code_9(emulate, connect):
    gemini = emulate(processing_seconds=30, options=Options(processed_mime_types=("video/",)))
    raw = connect(gemini)
    headers = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "video/mp4"}
    video = raw.http.post("/upload/v1beta/files", headers=headers, content=b"x").json()["file"]
    assert video["state"] == "PROCESSING"
    (line,) = raw.results(raw.create(_asking(video["uri"])))  # the lines themselves are ready at once
    assert line["error"]["code"] == 9
    gemini.clock.advance(31)
    assert "response" in raw.results(raw.create(_asking(video["uri"])))[0]


def test_processing_may_fail_by_mime_type(raw, gemini):
    gemini.faults = Faults(fail_files={"video/mp4"})
    headers = {"X-Goog-Upload-Protocol": "raw", "Content-Type": "video/mp4"}
    video = raw.http.post("/upload/v1beta/files", headers=headers, content=b"x").json()["file"]
    assert (video["state"], video["error"]["code"]) == ("FAILED", 3)
    (line,) = raw.results(raw.create(_asking(video["uri"])))
    assert line["error"]["code"] == 9
