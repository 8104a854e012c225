"""
The floor: the cost of a bare `send` of the same frame to one of many sockets.

    python -m tests.bench.floor WINDOWS MESSAGES RATE

The windows of the bench connect to it, and it answers their handshake with the minimum.
Then it sends at the rate of the workload `fanout` and prints the microseconds of processor
time per send.
"""

import select
import socket
import sys
import time

from bridge.core.frames import event_packet, text_frame
from tests.bench.publisher import body

_POSITION = "0123456789ab-123"


def frame() -> bytes:
    """Return a frame as the bridge sends it."""
    return text_frame(event_packet("message", body(), _POSITION))


def accept(number: int) -> list[socket.socket]:
    """Listen, print the port, and accept `number` windows."""
    accepted: list[socket.socket] = []
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(f"listening {listener.getsockname()[1]}", flush=True)
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while len(accepted) < number:
        poll.poll()
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.recv(4096)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + text_frame(b"0{}")
        )
        connection.recv(4096)
        connection.sendall(text_frame(b"40{}"))
        accepted.append(connection)
    return accepted


def main() -> None:
    """Accept the windows, send the messages, print the result."""
    windows, messages, rate = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    sends = [connection.send for connection in accept(windows)]
    sys.stdin.readline()
    data = frame()
    used_s = 0.0
    start_s = time.monotonic()
    for number in range(messages):
        time.sleep(max(0.0, start_s + number / rate - time.monotonic()))
        before_s = time.process_time()
        for send in sends:
            send(data)
        used_s += time.process_time() - before_s
    print(used_s / messages / windows * 1e6, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
