"""A served page over a folder, and a browser to look at it."""

import http.client
import json
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from esrl.watch import runs as runs_module
from esrl.watch.runs import Runs
from esrl.watch.server import Watcher

RECIPE = 'env = "brax/hopper"\nagent = "eggroll"\nenv_steps = 1000\nseed = 0\n'


class Client:
    """Asks a server, with headers of one's own; an answer is (status, headers, bytes)."""

    def __init__(self, server):
        self.server, self.port, self.address = server, server.server_port, server.address

    def get(self, path, headers=None, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def json(self, path):
        status, _, data = self.get(path)
        assert status == 200, data
        return json.loads(data)

    def only(self):
        """The one run that there is."""
        (run,) = self.json("/api/runs?since=0")["runs"]
        return run


@pytest.fixture
def serve(monkeypatch):
    """Serves folders while a test runs; every answer looks at the disk anew."""
    monkeypatch.setattr(runs_module, "_LOOK", 0.0)
    monkeypatch.setattr(runs_module, "_FIND", 0.0)

    @contextmanager
    def serving(*folders):
        with Watcher(Runs(folders), port=0) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            thread.start()
            try:
                yield Client(server)
            finally:
                server.shutdown()
                thread.join()

    return serving


@pytest.fixture
def write():
    """Writes the folder of a run: its rows, and its recipe."""

    def writing(folder, rows=(), recipe=RECIPE):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "recipe.toml").write_text(recipe)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return writing
