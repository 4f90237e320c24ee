"""What the tests of URLs need: an HTTP server between client and store that spoils answers."""

from __future__ import annotations

import http.client
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

PIECE_S, STALL_S = 0.02, 10.0
SECRETS = ("S3CR3T-of-the-store", "T0KEN-in-the-address", "PASSW0RD-of-the-user")
"""None of these may be anywhere but in a request."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Serve = Callable[[str, str, dict[str, str], bytes], Answer]
"""(method, path, headers, body) -> the answer."""


@dataclass
class Fault:
    """What happens to the first ``times`` GETs of each path that has ``part`` in it.

    ``kind``: a status such as "503"; "reset" and "cut" in the middle of the body; "stall"
    there; "slow", a body in pieces.
    """

    kind: str
    part: str = ".jpg"
    times: int = 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: that connections break off is what it is for."""


@dataclass
class Spoiler:
    """A server on loopback whose answers are those of ``serve``, spoilt as ``faults`` say."""

    serve: Serve
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._seen: Counter[tuple[int, str]] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                pass

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                outer._answer(self, body)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def reset(self, *faults: Fault) -> None:
        with self._lock:
            self.faults, self.asked = list(faults), []
            self._seen.clear()

    def gets(self, part: str = ".jpg") -> list[str]:
        """The paths of the GETs so far that have ``part``, without their query."""
        return [path for method, path in self.asked if method == "GET" and part in path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        method, path = handler.command, unquote(handler.path.partition("?")[0])
        with self._lock:
            self.asked.append((method, path))
            fault = self._fault(method, path)
        headers = dict(handler.headers.items())
        if fault.isdecimal():
            text = b"<Error><Code>SlowDown</Code><Message>Please</Message></Error>"
            text = text.replace(b"SlowDown", b"AccessDenied") if fault == "403" else text
            answer = Answer(int(fault), {"Content-Type": "application/xml"}, text)
        else:
            answer = self.serve(method, handler.path, headers, body)
        handler.send_response(answer.status)
        length = answer.headers.get("Content-Length", str(len(answer.body)))
        for name, value in {**answer.headers, "Content-Length": length}.items():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                handler.send_header(name, value)
        handler.end_headers()
        if method != "HEAD":
            self._send(handler, answer.body, fault)

    def _fault(self, method: str, path: str) -> str:
        for number, fault in enumerate(self.faults):
            if method == "GET" and fault.part in path:
                self._seen[number, path] += 1
                if self._seen[number, path] <= fault.times:
                    return fault.kind
        return ""

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes, fault: str) -> None:
        connection, half = handler.connection, len(body) // 2
        if fault == "slow":
            for at in range(0, len(body), max(len(body) // 5, 1)):
                handler.wfile.write(body[at : at + max(len(body) // 5, 1)])
                handler.wfile.flush()
                threading.Event().wait(PIECE_S)
        elif fault in ("reset", "cut", "stall"):
            handler.close_connection = True
            handler.wfile.write(body[:half])
            handler.wfile.flush()
            if fault == "stall":
                select.select([connection], [], [], STALL_S)  # until the other side gives up
            elif fault == "reset":  # no FIN but a RST
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            handler.wfile.write(body)


def passed_on(host: str, port: int) -> Serve:
    """Answers of another server."""

    def serve(method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        try:
            connection.request(method, path, body or None, headers)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    return serve


def files_of(folder: Path) -> dict[str, bytes]:
    """Path below ``folder`` -> bytes of every file."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def secrets_in(*texts: bytes | str) -> list[str]:
    """Which secrets are in any of these."""
    data = b"\n".join(text.encode() if isinstance(text, str) else text for text in texts)
    return [secret for secret in SECRETS if secret.encode() in data]
