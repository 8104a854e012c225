"""
A worker that does nothing but what a test says: python fake_worker.py LINE FILE.

FILE holds its orders, read at its start: `well`, `deaf` (hears nothing), `exit N` (at once),
`once N`: exits so this time, and is well the next, or `stay`: hangs up and stays this time.
"""

import os
import signal
import socket
import sys
import time
from pathlib import Path

line = socket.socket(fileno=int(sys.argv[1]))
file = Path(sys.argv[2])
order, _, code = file.read_text().partition(" ")
if order == "once":
    file.write_text("well")
if order == "stay":
    file.write_text("well")
    line.close()
    time.sleep(3600)
if order in {"exit", "once"}:
    sys.exit(int(code))
line.send(b"listening\n")
if order == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(3600)
heard = b""
while chunk := line.recv(100):
    heard += chunk
    file.with_suffix(".heard").write_bytes(heard)
    if b"insist" in heard:
        sys.exit(1)
    if b"drain" in heard and not os.environ.get("TESTS_SLOW_DRAIN"):
        sys.exit(0)
