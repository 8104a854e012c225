"""
A worker that only follows a test's order: python fake_worker.py CONTROL_FD FILE.

FILE holds the order, which is read at the start:

- `run`: follow the supervisor's messages
- `ignore`: ignore all messages and SIGTERM
- `exit N`: exit at once with status N
- `exit-once N`: exit at once with status N, and `run` the next time
- `hang-once`: close the control channel and hang, and `run` the next time
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

channel = socket.socket(fileno=int(sys.argv[1]))
file = Path(sys.argv[2])
order, _, code = file.read_text().partition(" ")
if order == "exit-once":
    file.write_text("run")
if order == "hang-once":
    file.write_text("run")
    channel.close()
    time.sleep(3600)
if order in {"exit", "exit-once"}:
    sys.exit(int(code))
channel.send(b"listening\n")
if order == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)
received = b""
while chunk := channel.recv(100):
    received += chunk
    file.with_suffix(".received").write_bytes(received)
    if b"insist" in received:
        sys.exit(1)
    if b"drain" in received and not os.environ.get("TESTS_SLOW_DRAIN"):
        sys.exit(0)
