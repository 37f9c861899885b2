"""The command line: thin. One module for each kind of work; ``app`` and ``options`` hold what they share."""

import os
import signal
import sys
import warnings
from pathlib import Path

from blemish.cli import bench, export, fit, inspect, lists, serve
from blemish.cli.app import app, say

__all__ = ["app", "bench", "export", "fit", "inspect", "lists", "main", "serve"]


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed for a stated reason, 2 wrong arguments, 3 a reject."""
    for name in ("stdout", "stderr"):  # a service, a program without a console and ``2>&-`` have none
        if (stream := getattr(sys, name)) is None or stream.closed:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 (for all that follows)
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C, so that nothing half-written stays; nohup's choice stands
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
    app()
