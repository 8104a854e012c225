"""Sockets for the hosts of a port: TCP, Unix sockets, and those that systemd passes."""

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from bridge.core.listen_hosts import passed_name, unix_path

# The proxy in front usually runs as another user, in the group of the bridge.
_UNIX_MODE: Final = 0o660
_TRY_S: Final = 1.0
_ADDRESS_FIX: Final = (
    "; 127.0.0.1 accepts connections from this machine only, 0.0.0.0 from everywhere"
)
_FIRST_PASSED_FD: Final = 3  # sd_listen_fds(3)


def bind_sockets(
    hosts: Sequence[str], port: int, setting: str, *, is_shared: bool = False
) -> list[socket.socket]:
    """
    Bind a socket for each address of each host; bound ones do not listen yet.

    `::` means both families, unless `0.0.0.0` is listed as well. Blocks while names are
    resolved.

    Args:
        hosts: Names, addresses, `unix:PATH`, and `fd:NAME` for sockets of systemd.
        port: The TCP port; 0 for any free one, the same for all hosts.
        setting: The setting of the port, for error texts.
        is_shared: Whether other processes bind the same port.

    Raises:
        OSError: If an address cannot be used; the text names the setting.

    """
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            path = unix_path(host)
            if path is not None:
                sockets.append(_bind_unix(path, setting))
                continue
            name = passed_name(host)
            if name is not None:
                sockets += _passed_sockets(name, setting)
                continue
            try:
                is_dual = host == "::" and "0.0.0.0" not in hosts
                for one in _bind_tcp(host, port, is_dual=is_dual, is_shared=is_shared):
                    sockets.append(one)
                    port = one.getsockname()[1]
            except OSError as exc:
                raise address_error(exc, setting, host, port) from exc
    except BaseException:
        for one in sockets:
            one.close()
        raise
    return sockets


def _bind_tcp(
    host: str, port: int, *, is_dual: bool, is_shared: bool
) -> list[socket.socket]:
    """Bind all addresses of a host; those that this machine lacks are left out."""
    sockets: list[socket.socket] = []
    missing: OSError | None = None
    found = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            one = socket.socket(family, kind, protocol)
        except OSError as exc:  # the kernel has no IPv6
            missing = exc
            continue
        try:
            # Without it, a port in TIME_WAIT would look taken.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                only = 0 if is_dual else 1
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
            one.bind((address[0], port, *address[2:]))
        except OSError as exc:
            one.close()
            if exc.errno != errno.EADDRNOTAVAIL:
                for each in sockets:
                    each.close()
                raise
            missing = exc  # such as ::1 of localhost, without IPv6
            continue
        sockets.append(one)
        port = one.getsockname()[1]
    if missing is not None and not sockets:
        raise missing
    return sockets


def _bind_unix(path: str, setting: str) -> socket.socket:
    """Bind a Unix socket; replaces one that a killed process left behind."""
    one = socket.socket(socket.AF_UNIX)
    try:
        if _is_left_behind(path):
            os.unlink(path)  # noqa: PTH108 - the path is a str
        one.bind(path)
        os.chmod(path, _UNIX_MODE)  # noqa: PTH101 - the path is a str
    except OSError as exc:
        one.close()
        problem = f"unix:{path} cannot be used: {exc.strerror or exc}"
        if exc.errno == errno.EADDRINUSE:
            problem = f"unix:{path} is taken: another process listens there, or it is no socket"
        raise OSError(f"{setting.replace('_PORT', '_HOST')}: {problem}") from exc
    return one


def _passed_sockets(name: str, setting: str) -> list[socket.socket]:
    """Return the listening sockets of this name that systemd passed to this process."""
    is_for_us = os.environ.get("LISTEN_PID") == str(os.getpid())
    count = int(os.environ.get("LISTEN_FDS", "0")) if is_for_us else 0
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")[:count]
    sockets: list[socket.socket] = []
    for descriptor in (
        _FIRST_PASSED_FD + index for index, one in enumerate(names) if one == name
    ):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 - its signature
        sockets.append(socket.socket(fileno=descriptor))
    if all(_is_listening(one) for one in sockets) and sockets:
        return sockets
    for one in sockets:
        one.close()
    problem = "is not a listening socket; the .socket unit needs Accept=no"
    if not sockets:
        problem = (
            f"systemd passed no socket of this name (LISTEN_FDNAMES={','.join(names)}); "
            "set FileDescriptorName= in the .socket unit, and start that unit"
        )
    raise _host_error(setting, f"fd:{name}: {problem}", fix="")


def _is_listening(one: socket.socket) -> bool:
    is_stream = one.type == socket.SOCK_STREAM
    return is_stream and one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1


def _is_left_behind(path: str) -> bool:
    """Return whether there is a socket at `path` and no process listens on it."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        if not stat.S_ISSOCK(os.stat(path).st_mode):  # noqa: PTH116 - the path is a str
            return False
        probe.settimeout(_TRY_S)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
    return False


def address_error(exc: OSError, setting: str, host: str, port: int) -> OSError:
    """Return an error that explains `exc` in terms of the setting of the address."""
    match exc.errno:
        case errno.EADDRINUSE:
            problem = (
                "is taken by another process; "
                "stop it or choose another port (0 = any free one)"
            )
        case errno.EACCES:
            problem = "needs root privileges; choose a port from 1024 on"
        case errno.EADDRNOTAVAIL:
            return _host_error(setting, f"{host} is not an address of this machine")
        case _ if isinstance(exc, socket.gaierror):
            return _host_error(setting, f"the name {host} cannot be resolved")
        case _:
            problem = f"cannot be used: {exc.strerror}"
    return OSError(f"{setting}: {host}:{port} {problem}")


def _host_error(setting: str, problem: str, *, fix: str = _ADDRESS_FIX) -> OSError:
    return OSError(f"{setting.replace('_PORT', '_HOST')}: {problem}{fix}")
