"""``python -m fewstep`` and the ``fewstep`` command."""

import sys


def main() -> None:
    """Entry point; Ctrl-C while modules are imported ends it without a traceback, too."""
    try:
        from fewstep.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
