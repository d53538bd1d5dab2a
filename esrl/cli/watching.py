"""The command that shows runs in a browser. Needs the standard library alone."""

from __future__ import annotations

from pathlib import Path


def watch(
    folders: tuple[str, ...] = ("runs",), *, host: str = "127.0.0.1", port: int = 8642, open: bool = False
) -> int:
    """Show runs in a browser, while they train and afterwards: curves, the population, films, time left.

    Serves a page to this machine alone, until Ctrl-C. Needs no network and no account.

    Args:
      folders: folders of runs, or folders that hold such. Without them: runs.
      host: address to listen to. Any other than 127.0.0.1 lets whoever reaches it read the runs.
      port: port to listen to, or the next one that is free; 0 is any.
      open: open a browser.
    """
    from esrl.watch.server import watch as serve

    serve([Path(folder).expanduser() for folder in folders], host, port, open)
    return 0
