"""The command line: thin. One module for each kind of work; ``app`` and ``options`` hold what they share."""

from blemish.cli import bench, fit, inspect, lists
from blemish.cli.app import app

__all__ = ["app", "bench", "fit", "inspect", "lists", "main"]


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed for a stated reason, 2 wrong arguments, 3 a reject."""
    app()
