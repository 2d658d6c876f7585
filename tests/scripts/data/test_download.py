"""scripts/data/download.py against a server on this machine that is as bad as real ones."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from scripts.data import download as module
from scripts.data.download import main
from tests.helpers import REPO, run_command

DATA = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
MD5 = hashlib.md5(DATA).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves DATA under every name; what goes wrong, and when, is set by a test."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/files/data.bin"
        self.ranges: list[str | None] = []  # of each request
        self.drop_after: list[int] = []  # bytes, for the next requests
        self.codes: list[int] = []  # answers to the next requests
        self.corrupt = 0  # requests that get a changed file
        self.resumable = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:  # noqa: N802
        server = self.server
        asked = self.headers["Range"]
        server.ranges.append(asked)
        if server.codes:
            self.send_error(server.codes.pop(0))
            return
        begin = int(asked[len("bytes=") : -1]) if asked and server.resumable else 0
        data = DATA
        if server.corrupt:
            server.corrupt -= 1
            data = DATA[:1000] + b"!" + DATA[1001:]
        if begin >= len(data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(data)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        body = data[begin:]
        self.wfile.write(body[: server.drop_after.pop(0)] if server.drop_after else body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "WAIT", 0.01)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def failed(capsys: pytest.CaptureFixture[str], *said: str) -> None:
    error = capsys.readouterr().err
    assert error.startswith("download.py: error: ") and error.count("\n") == 1, error
    for part in said:
        assert part in error


def test_a_dropped_connection_is_resumed(server: Server, tmp_path: Path) -> None:
    server.drop_after = [100_000, 50_000, 0]
    target = tmp_path / "new" / "data.bin"
    assert main([server.url, str(target), "--sha256", SHA256.upper()]) == 0
    assert target.read_bytes() == DATA
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]
    assert [path.name for path in target.parent.iterdir()] == ["data.bin"]


def test_another_run_goes_on(server: Server, tmp_path: Path) -> None:
    (tmp_path / "data.bin.part").write_bytes(DATA[:123_456])
    assert main([server.url, str(tmp_path / "data.bin"), "--md5", MD5]) == 0
    assert server.ranges == ["bytes=123456-"]
    assert (tmp_path / "data.bin").read_bytes() == DATA


@pytest.mark.parametrize("held", [DATA, DATA + b"more"])
def test_a_part_that_is_all_or_more(server: Server, tmp_path: Path, held: bytes) -> None:
    """As a kill between the last byte and the renaming leaves it; or of another file."""
    (tmp_path / "data.bin.part").write_bytes(held)
    assert main([server.url, str(tmp_path / "data.bin"), "--sha256", SHA256]) == 0
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_server_that_cannot_resume(server: Server, tmp_path: Path) -> None:
    server.resumable = False
    server.drop_after = [100_000]
    assert main([server.url, str(tmp_path / "data.bin"), "--sha256", SHA256]) == 0
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_corrupt_file(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.corrupt = 1
    line = [server.url, str(tmp_path / "data.bin"), "--sha256", SHA256]
    assert main(line) == 1
    failed(capsys, server.url, "is damaged or was changed", f"not {SHA256}")
    assert list(tmp_path.iterdir()) == []
    assert main(line) == 0
    assert (tmp_path / "data.bin").read_bytes() == DATA


def test_a_right_file_is_kept_and_a_wrong_one_told(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "data.bin"
    target.write_bytes(DATA)
    assert main([server.url, str(target), "--sha256", SHA256, "--md5", MD5]) == 0
    assert "already there" in capsys.readouterr().out
    target.write_bytes(b"mine")
    assert main([server.url, str(target), "--sha256", SHA256]) == 1
    failed(capsys, "exists, but its sha256 is", "remove it")
    assert target.read_bytes() == b"mine" and server.ranges == []


def test_passing_answers_are_asked_again(server: Server, tmp_path: Path) -> None:
    server.codes = [503, 429, 500]
    assert main([server.url, str(tmp_path / "data.bin"), "--sha256", SHA256]) == 0


@pytest.mark.parametrize(
    ("codes", "requests", "said"),
    [([404], 1, "the server says 404 Not Found"), ([503] * 9, 5, "5 times in a row")],
)
def test_lasting_answers_end_it(
    server: Server,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    codes: list[int],
    requests: int,
    said: str,
) -> None:
    server.codes = list(codes)
    assert main([server.url, str(tmp_path / "data.bin")]) == 1
    failed(capsys, server.url, said)
    assert len(server.ranges) == requests


def test_no_server_and_no_url(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    assert main([url, str(tmp_path / "data.bin")]) == 1
    failed(capsys, "Connection refused")
    assert main(["data.bin", str(tmp_path / "data.bin")]) == 1
    failed(capsys, "unknown url type")


def test_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    line = ["https://example.org/a/data.bin?version=1", str(tmp_path / "new"), "--sha256", SHA256]
    line += ["--offline", str(tmp_path / "mine")]
    assert main(line) == 1
    failed(capsys, "has no data.bin; put the file there, from https://example.org/a/data.bin")
    (tmp_path / "mine" / "data.bin").write_bytes(DATA[1:])
    assert main(line) == 1
    failed(capsys, "mine/data.bin is damaged")
    (tmp_path / "mine" / "data.bin").write_bytes(DATA)
    assert main(line) == 0
    assert (tmp_path / "new").read_bytes() == DATA


def test_as_a_command(server: Server, tmp_path: Path) -> None:
    script = str(REPO / "scripts" / "data" / "download.py")
    done = run_command(["python", script, server.url, str(tmp_path / "data.bin"), "--sha256", SHA256])
    assert done.stdout == f"{tmp_path}/data.bin: 300,000 bytes\n" and done.stderr == ""
