"""Who may ask, from where, how much and how slowly."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from service_peers import ROOMY, Asked, asking, exchange, read_answer

from covidseg_runtime.errors import SettingsError
from covidseg_runtime.service.door import Door
from covidseg_runtime.service.metrics import Metrics
from covidseg_runtime.service.settings import HEALTH_PATHS, ServiceLimits, ServiceSettings

TOKEN = "a-token-of-more-than-16-characters"
PATHS = ["/", "/metrics", "/openapi.json", "/v1/jobs", f"/v1/jobs/{'0' * 32}", "/v2", "/v2/models/x", "/nothing"]


@pytest.fixture
def locked(settings, segmenter):
    with asking(replace(settings, token=TOKEN), segmenter) as client:
        yield client


def test_all_but_health_needs_the_token(locked: Asked) -> None:
    for path in HEALTH_PATHS:
        assert locked.get(path).status_code == 200
    for path in PATHS:
        answer = locked.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert answer.headers["content-type"] == "application/problem+json"
        assert locked.get(path, headers={"Authorization": f"Bearer {TOKEN}"}).status_code != 401


def test_another_token_is_none(locked: Asked) -> None:
    bearer = f"Bearer {TOKEN}"
    for shown in (
        "",
        TOKEN,
        f"Basic {TOKEN}",
        "Bearer",
        bearer[:-1],
        f"{bearer}x",
        f"{bearer} x",
        f"{bearer}, {bearer}",
    ):
        assert locked.get("/v1/jobs", headers={"Authorization": shown}).status_code == 401
    assert locked.get("/v1/jobs", headers={"Authorization": bearer.replace("Bearer", "bearer")}).status_code == 200


def test_metrics_are_open_where_they_are_said_to_be(settings, segmenter) -> None:
    opened = replace(settings, token=TOKEN, open_paths=HEALTH_PATHS | {"/metrics"})
    with asking(opened, segmenter) as client:
        assert client.get("/metrics").status_code == 200
        assert client.get("/v1/jobs").status_code == 401


def test_the_token_is_in_no_text(settings, locked: Asked) -> None:
    locked.get("/v1/jobs", headers={"Authorization": f"Bearer {TOKEN}"})
    texts = [path.read_text("utf-8") for path in settings.folder.rglob("*.json")]
    for text in (repr(locked.service.settings), *locked.lines, *texts):
        assert TOKEN not in text


def test_an_address_of_a_network_needs_a_token(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "10.0.0.5", "::", "example.org"):
        with pytest.raises(SettingsError, match="no token is set"):
            ServiceSettings(tmp_path, host=host)
        assert ServiceSettings(tmp_path, host=host, token=TOKEN).host == host
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        assert ServiceSettings(tmp_path, host=host).token is None


@pytest.mark.parametrize("token", ["", "short", "with a space in the middle", "ends-with-a-line-feed\n", "é" * 20])
def test_what_is_no_token_is_refused_without_showing_it(tmp_path: Path, token: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ServiceSettings(tmp_path, token=token)
    assert "openssl rand" in str(caught.value)
    assert not token or token not in str(caught.value)


@pytest.mark.parametrize("change", [{"keep_s": 0}, {"workers": 0}])
def test_settings_without_meaning_are_refused(tmp_path: Path, change) -> None:
    with pytest.raises(SettingsError):
        ServiceSettings(tmp_path, **change)
    for limits in ({"queue": 0}, {"idle_s": 0.0}, {"upload_bytes": 2 << 30, "disk_bytes": 1 << 30}):
        with pytest.raises(SettingsError):
            ServiceLimits(**limits)


def test_a_page_of_another_site_is_refused(client: Asked, scan: bytes) -> None:
    evil = {"Origin": "https://example.org"}
    assert client.post("/v1/jobs", files={"scan": ("a", scan)}, headers=evil).status_code == 403
    assert client.get("/v1/jobs", headers=evil).status_code == 403
    assert client.get("/v1/jobs", headers={"Origin": f"http://127.0.0.1:{client.port}"}).status_code == 200
    assert client.get("/v1/jobs", headers={"Host": "rebound.example.org"}).status_code == 403
    assert client.get("/v1/jobs", headers={"Host": f"localhost:{client.port}"}).status_code == 200
    assert client.get("/v1/jobs").headers.get("access-control-allow-origin") is None


@pytest.mark.parametrize("origin", ["null", "http://[", "http://[::1", "nonsense", ""])
def test_an_origin_that_is_none_is_refused_like_another_site(client: Asked, origin: str) -> None:
    assert exchange(client.port, "GET /v1/jobs", f"Origin: {origin}").startswith(b"HTTP/1.1 403 ")


def test_with_a_token_it_answers_to_any_name(locked: Asked) -> None:
    shown = {"Host": "scans.example.org", "Authorization": f"Bearer {TOKEN}"}
    assert locked.get("/v1/jobs", headers=shown).status_code == 200


def test_every_answer_tells_browsers_to_be_careful(client: Asked) -> None:
    for path in PATHS:
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "server" not in headers


def test_a_page_of_a_scan_may_run_its_scripts_but_not_in_the_services_name(client: Asked, scan: bytes) -> None:
    job = client.ended(client.submit(scan).json()["id"])
    policy = client.get(job["results"]["page"]).headers["content-security-policy"]
    assert policy == "sandbox allow-scripts; frame-ancestors 'none'"


def test_nothing_of_a_page_comes_from_elsewhere(client: Asked) -> None:
    text = client.get("/").text
    assert "://" not in text
    assert "<script" not in text
    assert client.get("/docs").status_code == 404


def test_an_unknown_path_or_method_is_told_in_a_sentence(client: Asked) -> None:
    missing = client.get("/v3/../etc")
    assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
    wrong = client.put("/v1/jobs")
    assert (wrong.status_code, "PUT is not for this path" in wrong.json()["detail"]) == (405, True)
    assert wrong.headers["allow"] == "GET, POST"
    assert client.put(f"/v1/jobs/{'0' * 32}").headers["allow"] == "DELETE, GET"
    invalid = client.get("/v1/jobs", params={"limit": "many"})
    assert (invalid.status_code, "limit is 'many'" in invalid.json()["detail"]) == (422, True)


@pytest.fixture
def hasty(settings, segmenter):
    limits = replace(ROOMY, header_s=0.5, idle_s=0.5, transfer_s=2.0, connections=4)
    with asking(replace(settings, limits=limits), segmenter) as client:
        yield client


def test_a_body_that_does_not_come_is_408(hasty: Asked, settings) -> None:
    answer = exchange(
        hasty.port, "POST /v1/jobs", "Content-Type: multipart/form-data; boundary=b", "Content-Length: 500", body=b"--b"
    )
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert hasty.service.store.queue_length() == 0
    assert not any((settings.folder / "incoming").iterdir())


def test_a_body_that_trickles_in_is_408_in_the_end(hasty: Asked) -> None:
    head = "POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=0.2) as connection:
        connection.sendall((head + "Content-Length: 100000\r\n\r\n").encode())
        answer = b""
        while not answer and time.monotonic() < began + 30:
            connection.sendall(b"x")
            try:
                answer = read_answer(connection)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ") or answer.startswith(b"HTTP/1.1 400 ")


def is_cut_off(connection: socket.socket, seconds: float = 30) -> bool:
    """Whether the other side ends the connection while bytes trickle in."""
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end:
            connection.sendall(b"a")
            time.sleep(0.05)
    except OSError:
        return True
    return False


def test_a_header_that_does_not_come_ends_the_connection(hasty: Asked) -> None:
    for sent in (b"", b"GET / HTTP/1.1\r\nX: "):
        with socket.create_connection(("127.0.0.1", hasty.port), timeout=30) as connection:
            connection.sendall(sent)
            assert connection.recv(100) == b""


def test_a_header_that_trickles_in_ends_the_connection(hasty: Asked) -> None:
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=0.1) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        assert is_cut_off(connection)


def test_what_follows_an_answer_is_not_read_without_end(hasty: Asked) -> None:
    """The body of a request that was refused is thrown away, for a while."""
    head = f"POST /v2/models/x/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {10**7}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=30) as connection:
        connection.sendall(head.encode())
        assert read_answer(connection).startswith(b"HTTP/1.1 404 ")
        assert is_cut_off(connection)


def test_one_connection_too_many_is_told_so(hasty: Asked) -> None:
    hasty.close()
    held = [socket.create_connection(("127.0.0.1", hasty.port), timeout=30) for _ in range(4)]
    try:
        answers = [exchange(hasty.port, "GET /health/live") for _ in range(3)]
    finally:
        for connection in held:
            connection.close()
    assert any(answer.startswith(b"HTTP/1.1 503 ") and b"retry-after" in answer for answer in answers)


def test_a_reader_that_does_not_read_is_let_go(settings) -> None:
    """The system's buffers on a machine's own network are larger than any answer, so the network is left out."""

    async def answer(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        raise AssertionError("the second part was taken")

    async def stuck(message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    limits, metrics = replace(ROOMY, idle_s=0.05), Metrics()
    door = Door(answer, replace(settings, limits=limits), metrics)
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(asyncio.wait_for(door(scope, None, stuck), 30))
    assert b'status="200"} 1.0' in metrics.text()


def test_an_answer_may_take_longer_than_a_body_may_pause(settings) -> None:
    """What sends an answer in parts listens meanwhile whether the caller is still there."""
    incoming = iter((0.0, 0.3))

    async def receive():
        seconds = next(incoming)
        await asyncio.sleep(seconds)
        return {"type": "http.disconnect"} if seconds else {"type": "http.request", "body": b"", "more_body": False}

    async def answer(scope, receive, send) -> None:
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def take(message) -> None:
        assert message["status"] == 200

    door = Door(answer, replace(settings, limits=replace(ROOMY, idle_s=0.05)), Metrics())
    scope = {"type": "http", "method": "GET", "path": "/", "headers": [(b"host", b"127.0.0.1")]}
    asyncio.run(door(scope, receive, take))


def test_what_is_no_http_is_400(client: Asked) -> None:
    assert exchange(client.port, "\x00\x01 nonsense \xff").startswith(b"HTTP/1.1 400 ")
    assert exchange(client.port, "POST /v1/jobs", "Content-Length: -1").startswith(b"HTTP/1.1 400 ")
    assert exchange(client.port, "POST /v1/jobs", "Content-Length: 1", "Content-Length: 2").startswith(b"HTTP/1.1 400 ")
    with socket.create_connection(("127.0.0.1", client.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000)  # and no end
        assert read_answer(connection).startswith(b"HTTP/1.1 400 ")
    assert client.get("/health/ready").status_code == 200
