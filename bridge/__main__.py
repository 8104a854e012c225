"""
The program `bridge`, also as `python -m bridge`.

Its imports take half a second, in which Ctrl-C would end in a traceback out of the middle
of some library. So until the commands are there, Ctrl-C just ends the process.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)

from bridge.cli.main import main as run_command  # noqa: E402 - after that, on purpose


def main() -> None:
    """Run the command that the arguments name."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command()


if __name__ == "__main__":
    main()
