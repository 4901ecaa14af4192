"""A real server on this machine that drops, refuses and changes as it is told, and what is fetched from it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from mmvicreg.data.card import Card, RemoteFile
from mmvicreg.data.download import Downloader


@dataclass
class Server:
    """What the server does, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    version: str = "v1"
    cut: list[int] = field(default_factory=list)
    """Bytes of the body after which each of the next connections is dropped."""
    status: list[int] = field(default_factory=list)
    """Statuses of the next answers."""
    slow: float = 0.0
    length: str | None = None
    """What is told as the length of an answer in place of its length."""
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of this machine, until the context ends."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            content = state.files.get(self.path.lstrip("/"))
            if body and state.status:
                self.send_error(state.status.pop(0))
                return
            if content is None:
                self.send_error(404)
                return
            start, asked = 0, self.headers.get("Range")
            current = self.headers.get("If-Range") in (None, f'"{state.version}"')
            if asked and state.ranges and current:
                start = int(asked.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.end_headers()
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", state.length or str(len(content) - start))
            self.send_header("ETag", f'"{state.version}"')
            self.end_headers()
            if not body:
                return
            rest = content[start:]
            if state.cut:
                rest = rest[: state.cut.pop(0)]
            for at in range(0, len(rest), 16_384):
                self.wfile.write(rest[at : at + 16_384])
                time.sleep(state.slow)

        def log_message(self, *_: object) -> None:
            pass

    class Quiet(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that was killed is no news here."""

    http = Quiet(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def card(*files: RemoteFile) -> Card:
    return Card("toy", "Toy", ("nowhere",), "none", "a toy", ("image-text",), ("train",), "none", files=files)


def quiet(**changes: object) -> Downloader:
    return replace(Downloader(progress=False, sleep=lambda _: None), **changes)  # type: ignore[arg-type]
