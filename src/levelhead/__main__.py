"""The program: `levelhead`, or `python -m levelhead`."""

import sys


def main() -> None:
    """Runs a command line, and ends the process with its status."""
    try:
        from levelhead import cli  # which takes a second, in which there may be a Ctrl-C

        cli.main()
    except KeyboardInterrupt:
        print("levelhead: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
