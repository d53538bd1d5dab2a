"""The server of the page: files of runs and of the page itself to readers on this machine, and nothing else.

Addresses name a run by a key, never by a path. Films run their own script, so they come with a policy that lets them
reach nothing, and are shown in a sandbox.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import re
import signal
import socket
import socketserver
import sys
import webbrowser
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from esrl.core.errors import EsrlError, notice
from esrl.watch.runs import Runs, WatchedRun

PORT = 8642
_TRIED = 50  # ports after a taken one
_SCRIPTS = ("main.js", "list.js", "chart.js", "draw.js", "data.js", "film.js", "series.js")
_PAGE = {
    "index.html": "text/html; charset=utf-8",
    "watch.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(
        ("main.js", "list.js", "chart.js", "draw.js", "data.js", "film.js", "series.js"),
        "text/javascript; charset=utf-8",
    ),
}
_FILMS = {".html": "text/html; charset=utf-8", ".mp4": "video/mp4", ".gif": "image/gif"}
_METRICS = 12  # columns of one answer
_PIECE = 1 << 16  # bytes of a film that are sent at once
_IDLE = 60  # seconds that a connection may say nothing
POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
FILM_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
    " img-src data: blob:; frame-ancestors 'self'"
)


class Watcher(ThreadingHTTPServer):
    """The server, bound to a host and a port or a free one after it.

    Attributes:
      runs: what it shows. names: hosts by which it may be called, besides addresses in numbers.
      address: of the page.

    Raises:
      EsrlError: no port can be had.
    """

    daemon_threads = True
    allow_reuse_address = os.name != "nt"

    def __init__(self, runs: Runs, host: str = "127.0.0.1", port: int = PORT) -> None:
        self.runs = runs
        self.names = {"localhost", host.lower(), socket.gethostname().lower()}
        self.page = {name: (kind, _asset(name)) for name, kind in _PAGE.items()}
        if ":" in host:
            self.address_family = socket.AF_INET6
        last: OSError | None = None
        for tried in range(port, min(port + _TRIED, 65536)) if port else (0,):
            try:
                super().__init__((host, tried), _Handler)
                break
            except OSError as error:
                last = error
            except OverflowError as error:
                raise EsrlError(f"port is {port}, but must lie in 0 .. 65535") from error
        else:
            why = last.strerror if last is not None else "it is none of 0 .. 65535"
            raise EsrlError(f"no port from {port} on can be listened to at {host}: {why}; give another --port")
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        at = f"[{shown}]" if ":" in shown else shown
        self.address = f"http://{at}:{self.server_port}/"

    def server_bind(self) -> None:
        # Not HTTPServer's, which asks a name server what this machine is called.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error of ours; all others are said in one line."""
        error = sys.exception()
        if not isinstance(error, OSError):
            notice(f"a request failed: {type(error).__name__}: {error}")

    def knows(self, host: str | None) -> bool:
        """Whether a request's Host is one of ours: a page elsewhere may have its own name point to this machine."""
        name = urlsplit(f"//{host}").hostname if host else None
        if name is None:
            return False
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return name in self.names


def _asset(name: str) -> bytes:
    return resources.files("esrl.watch").joinpath("page", name).read_bytes()


class _Refused(Exception):
    """An answer that is none: a status of HTTP, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: Watcher
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "esrl", ""
    timeout = _IDLE
    disable_nagle_algorithm = True  # else what follows the head of an answer may wait for the reader to confirm that

    def do_GET(self) -> None:
        try:
            self._get()
        except _Refused as refused:
            self._send(refused.status, "text/plain; charset=utf-8", str(refused).encode())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing of requests."""

    def _get(self) -> None:
        try:
            known = self.server.knows(self.headers.get("Host"))
        except ValueError:
            known = False
        if not known:
            raise _Refused(403, "this server answers to localhost and to addresses in numbers; call it by one of them")
        try:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query, max_num_fields=100)
        except ValueError:
            raise _Refused(400, "the address is none") from None
        name = "index.html" if parts.path == "/" else parts.path.removeprefix("/")
        if name in self.server.page:
            kind, data = self.server.page[name]
            self._send(200, kind, data)
        elif parts.path == "/film":
            self._film(query)
        elif parts.path in _ANSWERS:
            answer = _ANSWERS[parts.path](self.server.runs, query)
            self._send(200, "application/json", json.dumps(answer, allow_nan=False, separators=(",", ":")).encode())
        else:
            raise _Refused(404, "there is nothing here")

    def _head(self, status: int, kind: str, size: int, policy: str = POLICY) -> None:
        self.send_response(status)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(size)),
            ("Content-Security-Policy", policy),
            ("X-Content-Type-Options", "nosniff"),
            ("Referrer-Policy", "no-referrer"),
            ("Cross-Origin-Resource-Policy", "same-origin"),
            ("Cache-Control", "no-cache"),
        ):
            self.send_header(name, value)

    def _send(self, status: int, kind: str, data: bytes) -> None:
        self._head(status, kind, len(data))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _film(self, query: dict[str, list[str]]) -> None:
        run, name = _run(self.server.runs, query), query.get("name", [""])[0]
        try:
            file = run.open_film(name)
        except (OSError, ValueError):
            raise _Refused(404, "there is no such film") from None
        with os.fdopen(file, "rb") as film:
            size = os.fstat(film.fileno()).st_size
            begin, end = self._range(size)
            whole = (begin, end) == (0, size)
            self._head(200 if whole else 206, _FILMS[Path(name).suffix], end - begin, FILM_POLICY)
            self.send_header("Accept-Ranges", "bytes")
            if not whole:
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
            self.end_headers()
            film.seek(begin)
            left = 0 if self.command == "HEAD" else end - begin
            while left > 0:
                data = film.read(min(_PIECE, left))
                if not data:  # it was cut meanwhile
                    self.close_connection = True
                    break
                self.wfile.write(data)
                left -= len(data)

    def _range(self, size: int) -> tuple[int, int]:
        """The part of a film that is asked for, as players do: its begin, and the byte behind it."""
        asked = re.fullmatch(r" *bytes *= *([0-9]{0,18})-([0-9]{0,18}) *", self.headers.get("Range", ""), re.ASCII)
        if asked is None or asked.groups() == ("", ""):
            return 0, size
        first, last = asked.groups()
        if not first:
            begin, end = max(size - int(last), 0), size
        else:
            begin, end = int(first), min(int(last) + 1, size) if last else size
        if begin >= end:
            raise _Refused(416, "the film has no such part")
        return begin, end


def _run(runs: Runs, query: dict[str, list[str]]) -> WatchedRun:
    run = runs.get(query.get("run", [""])[0])
    if run is None:
        raise _Refused(404, "there is no such run")
    return run


def _runs(runs: Runs, query: dict[str, list[str]]) -> dict[str, Any]:
    since = query.get("since", ["0"])[0]
    return runs.since(int(since) if since.isascii() and since.isdecimal() and len(since) < 16 else 0)


def _scores(runs: Runs, query: dict[str, list[str]]) -> dict[str, Any]:
    run = _run(runs, query)
    names = ("generation", "env_steps", "seconds", "seconds_training", "mean", "std")
    scores = run.table.evaluations()
    return {"rows": run.table.rows, **{name: [getattr(score, name) for score in scores] for name in names}}


def _series(runs: Runs, query: dict[str, list[str]]) -> dict[str, Any]:
    run, names = _run(runs, query), query.get("metric", [])[:_METRICS]
    return {"rows": run.table.rows, **run.table.columns(names)}


def _recipe(runs: Runs, query: dict[str, list[str]]) -> dict[str, Any]:
    run = _run(runs, query)
    return {"recipe": run.recipe_text(), "metrics": run.table.names, "path": str(run.path)}


_ANSWERS: dict[str, Callable[[Runs, dict[str, list[str]]], dict[str, Any]]] = {
    "/api/runs": _runs,
    "/api/scores": _scores,
    "/api/series": _series,
    "/api/run": _recipe,
}


def watch(folders: Sequence[Path], host: str = "127.0.0.1", port: int = PORT, show: bool = False) -> None:
    """Serves the page until Ctrl-C.

    Args:
      folders: of runs, or folders that hold such. host: the address that is listened to. port: the first that is tried;
        0 is any. show: open a browser.

    Raises:
      EsrlError: no port can be had.
    """
    for folder in folders:
        if not folder.is_dir():
            notice(f"{folder} does not exist yet; runs are shown when they begin there")
    with Watcher(Runs(folders), host, port) as server:
        if host not in ("127.0.0.1", "localhost", "::1"):
            notice(f"whoever reaches this machine at {host} can read these runs")
        print(f"watching {', '.join(map(str, folders))} at {server.address} (Ctrl-C ends this)", flush=True)
        if show:
            webbrowser.open(server.address)
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # esrl.core.interrupts has it so while packages load
            signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
