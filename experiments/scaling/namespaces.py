"""Hosts on one machine: network namespaces that a virtual bridge joins, each with an address and a name of its own.

    with hosts(2) as there:             # loopback where the system allows no namespaces
        process = subprocess.Popen([*there[1].prefix, sys.executable, "-c", "..."])
        there[1].bytes_sent()           # counted on its end of the virtual link

Needs the right to make namespaces (root), and the commands ip, unshare and mount.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_NUMBERS = itertools.count()
_INSIDE = 'mount --bind "$0" /etc/hosts && hostname "$1" && shift && exec "$@"'


class Host(NamedTuple):
    """A host.

    Attributes:
      address: by which the others reach it. prefix: words before a command that runs on it.
      namespace: its name, empty on loopback.
    """

    address: str
    prefix: tuple[str, ...] = ()
    namespace: str = ""

    def counters(self) -> dict[str, int]:
        """Bytes and packets that went out of this host's end of the link, and came in; empty on loopback."""
        if not self.namespace:
            return {}
        names = ("tx_bytes", "rx_bytes", "tx_packets", "rx_packets")
        files = [f"/sys/class/net/eth0/statistics/{name}" for name in names]
        # sysfs shows the interfaces of the namespace in which it was mounted; ip netns exec mounts it anew.
        told = _run(*_exec(self.namespace), "cat", *files)
        return dict(zip(names, map(int, told.split()), strict=True))

    def bytes_sent(self) -> int:
        """Bytes that went out of this host's end of the link."""
        return self.counters()["tx_bytes"]


def allowed() -> bool:
    """Whether namespaces can be made here."""
    if os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "mount"))):
        return False
    name = f"esrl-try-{os.getpid()}"
    try:
        _run("ip", "netns", "add", name)
        _run(*_exec(name), "unshare", "--uts", "--mount", "true")
        _run("ip", "link", "add", f"b{os.getpid()}", "type", "bridge")
    except subprocess.CalledProcessError:
        return False
    finally:
        for words in (("ip", "netns", "del", name), ("ip", "link", "del", f"b{os.getpid()}")):
            with contextlib.suppress(subprocess.CalledProcessError):
                _run(*words)
    return True


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[Host]]:
    """So many hosts that reach each other: in namespaces where the system allows them, on loopback elsewhere."""
    if not allowed():
        yield [Host("127.0.0.1")] * number
        return
    # Bridges, links and addresses of their own, since several runs may use one machine at once.
    tag, subnet = f"{os.getpid() % 100000}x{next(_NUMBERS)}", f"10.{os.getpid() % 200 + 50}.{next(_NUMBERS) % 250}"
    bridge = f"b{tag}"
    with contextlib.ExitStack() as undo, tempfile.TemporaryDirectory() as folder:
        _run("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(_quiet, "ip", "link", "del", bridge)
        _run("ip", "link", "set", bridge, "up")
        made = []
        names = [f"esrl-{tag}-{i}" for i in range(number)]
        table = Path(folder, "hosts")
        lines = [f"{subnet}.{i + 1} {name}" for i, name in enumerate(names)]
        table.write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))
        for i, name in enumerate(names):
            _run("ip", "netns", "add", name)
            undo.callback(_quiet, "ip", "netns", "del", name)
            near = f"v{tag}n{i}"
            _run("ip", "link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", name)
            _run("ip", "link", "set", near, "master", bridge, "up")
            _run("ip", "-n", name, "addr", "add", f"{subnet}.{i + 1}/24", "dev", "eth0")
            _run("ip", "-n", name, "link", "set", "eth0", "up")
            _run("ip", "-n", name, "link", "set", "lo", "up")
            # A host's own name leads to its address on the link: that is where gloo listens.
            prefix = (*_exec(name), "unshare", "--uts", "--mount", "sh", "-c", _INSIDE, str(table), name)
            made.append(Host(f"{subnet}.{i + 1}", prefix, name))
        yield made


def _exec(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _quiet(*words: str) -> None:
    subprocess.run(words, check=False, capture_output=True)
