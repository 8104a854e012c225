"""The name under which bridge is installed. The import package and the command are `bridge`."""

from typing import Final

DISTRIBUTION: Final = "rabbitmq-socketio-bridge"


def install_command(extra: str) -> str:
    """Return the command that installs bridge with this extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
