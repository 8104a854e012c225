"""
The program `bridge`, also as `python -m bridge`.

The imports of some commands take a second, in which Ctrl-C would show a traceback from
the middle of a library. Until they are done, Ctrl-C ends the process without one, and the
cyclic garbage collector does not run: what imports create stays.
"""

import gc
import signal
import sys

signal.signal(signal.SIGINT, signal.SIG_DFL)
gc.disable()

from bridge.cli.main import import_command  # noqa: E402 - imports after the signal handler
from bridge.cli.main import main as run_command  # noqa: E402
from bridge.log_writer import open_standard_streams  # noqa: E402


def main() -> None:
    """Run the command that the arguments name."""
    open_standard_streams()
    import_command(sys.argv[1:])
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command()


if __name__ == "__main__":
    main()
