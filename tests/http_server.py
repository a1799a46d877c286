"""A real HTTP server on 127.0.0.1 that misbehaves as scripted.

    with Server({"/val2017.zip": data}) as server:          # or Server(folder)
        server.script["/val2017.zip"] = [Reply(cut=1000), Reply(status=503)]   # then it behaves
        fetch(f"{server.url}/val2017.zip")
        assert server.requests[1].headers["Range"] == "bytes=1000-"

It knows Range, If-Range and ETag, keeps connections alive, and serves as a plain proxy, too: a request for
http://any.host/val2017.zip is answered like one for /val2017.zip.
"""

import contextlib
import hashlib
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import unquote, urlsplit

HTML = b"<!DOCTYPE html><title>Welcome</title>Please accept the terms of this network."


@dataclass(frozen=True)
class Reply:
    """How one request is answered; the default is as it should be."""

    status: int = 0  # an error with an empty body, or with 302 a redirect
    headers: Mapping[str, str] = field(default_factory=dict)  # added, in place of one of the same name; "" for none
    content: bytes | None = None  # instead of the file's
    cut: int | None = None  # close the connection after so many bytes of the body
    stall: int | None = None  # send nothing more after so many bytes, without closing
    longer: int = 0  # Content-Length claims so many bytes more than there are, or less when negative
    chunked: bool = False
    ignore_range: bool = False
    ignore_if_range: bool = False
    shift: int = 0  # of the range that is sent, against the one asked for
    pace: float = 0.0  # seconds between pieces of 4 kB


@dataclass(frozen=True)
class Request:
    path: str
    headers: Message


class Server:
    """`content`: bytes by path, or a folder. `latency`: seconds before each reply."""

    def __init__(self, content: Mapping[str, bytes] | Path, latency: float = 0.0) -> None:
        self.content, self.latency = content, latency
        self.script: dict[str, list[Reply]] = {}  # the replies to come, by path; each is used once
        self.always: dict[str, Reply] = {}  # the reply to all other requests of a path
        self.requests: list[Request] = []
        self.sent = self.in_flight = self.most_in_flight = 0
        self.lock, self.closing = threading.Lock(), threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.owner = self
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def read(self, path: str) -> bytes | None:
        if isinstance(self.content, Path):
            file = self.content / unquote(path).lstrip("/")
            return file.read_bytes() if file.is_file() else None
        return self.content.get(path)

    def next_reply(self, path: str) -> Reply:
        with self.lock:
            script = self.script.get(path)
            return script.pop(0) if script else self.always.get(path, Reply())

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    owner: Server

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that leaves is what tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Http

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        owner, path = self.server.owner, urlsplit(self.path).path
        with owner.lock:
            owner.requests.append(Request(path, self.headers))
            owner.in_flight += 1
            owner.most_in_flight = max(owner.most_in_flight, owner.in_flight)
        try:
            time.sleep(owner.latency)
            self._answer(owner.read(path), owner.next_reply(path))
        finally:
            with owner.lock:
                owner.in_flight -= 1

    def _answer(self, content: bytes | None, reply: Reply) -> None:
        content = content if reply.content is None else reply.content
        status = reply.status or (404 if content is None else 200)
        headers = {"Content-Length": "0"}
        body = b""
        if status == 200:
            assert content is not None
            etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            start = self._start(reply, etag)
            body = content[start:]
            headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(len(body) + reply.longer)}
            if start and start >= len(content):
                status, body, headers = 416, b"", {"Content-Length": "0", "Content-Range": f"bytes */{len(content)}"}
            elif start:
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if reply.chunked:
                headers["Transfer-Encoding"] = "chunked"
        self.send_response(status)
        for name, value in (headers | dict(reply.headers)).items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self._send(body, reply)

    def _start(self, reply: Reply, etag: str) -> int:
        asked = self.headers["Range"]
        if asked is None or reply.ignore_range:
            return 0
        if not reply.ignore_if_range and self.headers["If-Range"] not in (None, etag):
            return 0
        return int(asked.removeprefix("bytes=").removesuffix("-")) + reply.shift

    def _send(self, body: bytes, reply: Reply) -> None:
        end = min(len(body), *(k for k in (reply.cut, reply.stall) if k is not None), len(body))
        step = 4096 if reply.pace else 1 << 20
        for start in range(0, end, step):
            piece = body[start : min(end, start + step)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
            self.server.owner.sent += len(piece)
            time.sleep(reply.pace)
        if reply.chunked and end == len(body):
            self.wfile.write(b"0\r\n\r\n")
        if reply.stall is not None:
            self.server.owner.closing.wait(60)
        if end < len(body) or reply.longer:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)
