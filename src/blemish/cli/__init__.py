"""The command line: thin. One module for each kind of work; ``app`` holds what they share."""

from blemish.cli import comparing, judging, learning, lists
from blemish.cli.app import app

__all__ = ["app", "comparing", "judging", "learning", "lists", "main"]


def main() -> None:
    """Run the command line; exit codes: 0 done, 1 failed for a stated reason, 2 wrong arguments, 3 a reject."""
    app()
