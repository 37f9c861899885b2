"""``blemish`` and ``python -m blemish``: the command line, which may be interrupted while Python still imports it."""

import sys


def main() -> None:
    """Run the command line; its exit codes stand in ``blemish.cli``."""
    try:
        from blemish.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit("blemish: stopped; nothing half-written is left behind")


if __name__ == "__main__":
    main()
