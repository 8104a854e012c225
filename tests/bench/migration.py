"""
Migrate a million messages from a file into Redis, once in one run and once with two kills.

    python -m tests.bench.migration                      a million messages, 10,000 users
    python -m tests.bench.migration --report docs/scale.md

Uses a private redis-server with `appendfsync always` and `bridge inbox migrate` in a process of
its own. In the second migration the command is killed (SIGKILL) after a third and after two
thirds of the users. All keys are then compared with those of the first migration.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from bridge.inbox.contract import Retention
from bridge.inbox.redis.encoding import tag_names
from tests.bench.report import write_part
from tests.bench.servers import ROOT, cpu_us
from tests.inbox_files import Filling, fill
from tests.redis_server import RedisServer

_RETENTION: Final = Retention(max_messages=1000, max_age_s=7 * 86400, dedupe_s=3600)
_POLL_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class CommandRun:
    """The resources and the output of one run of the command."""

    seconds: float
    cpu_s: float
    peak_mib: float
    status: int
    output: str


class CarryCommand:
    """A running `bridge inbox migrate`."""

    def __init__(self, file: Path, server: RedisServer) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("BRIDGE_")}
        self._began_s = time.perf_counter()
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "bridge", "inbox", "migrate", "--json"),
                *("--from", f"sqlite:{file}"),
            ],
            cwd=ROOT,
            env=kept | {"BRIDGE_INBOX": server.url, "BRIDGE_DEDUPE_WINDOW": "1h"},
            stdout=subprocess.PIPE,
        )

    def wait(self) -> CommandRun:
        """Wait for the end of the command."""
        assert self._process.stdout is not None
        output = self._process.stdout.read().decode()
        _, status, used = os.wait4(self._process.pid, 0)
        self._process.returncode = status
        return CommandRun(
            seconds=time.perf_counter() - self._began_s,
            cpu_s=used.ru_utime + used.ru_stime,
            peak_mib=used.ru_maxrss / 1024,
            status=status,
            output=output,
        )

    def kill_when(self, server: RedisServer, upto: int) -> None:
        """Kill the command when it has recorded progress up to the user `upto`."""
        while _upto(server) < upto:
            assert self._process.poll() is None, (
                "the command ended before it could be killed"
            )
            time.sleep(_POLL_S)
        self._process.kill()


def _upto(server: RedisServer) -> int:
    keys = server.command("KEYS", "*}:carry").splitlines()
    noted = server.command("HGET", keys[0], "upto") if keys else ""
    return int(noted) if noted.isdecimal() else 0


def _digest(server: RedisServer) -> Mapping[str, str]:
    """Return a digest of the value of each key, except the one with the progress."""
    script = (
        "local out = {} for _, key in ipairs(redis.call('KEYS', ARGV[1])) do"
        " if not string.find(key, '}:carry$') then"
        " local kind = redis.call('TYPE', key).ok"
        " local value = kind == 'hash' and redis.call('HGETALL', key)"
        " or kind == 'list' and redis.call('LRANGE', key, 0, -1)"
        " or redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')"
        # The fields of a hash have no defined order.
        " if kind == 'hash' then local pairs_ = {} for i = 1, #value, 2 do"
        # The replication id differs between the servers.
        " if value[i] ~= '\\1line' then"
        " pairs_[#pairs_ + 1] = value[i] .. '=' .. value[i + 1] end end"
        " table.sort(pairs_) value = pairs_ end"
        " local sum = '' for i = 1, #value, 500 do sum = redis.sha1hex(sum .."
        " table.concat(value, '|', i, math.min(i + 499, #value))) end"
        " out[#out + 1] = key .. ' ' .. sum end end return out"
    )
    digest: dict[str, str] = {}
    for name in tag_names():  # one tag per script, so each script is short
        lines = server.command("EVAL", script, "0", f"*{{{name}}}:*").splitlines()
        digest.update(dict(line.rsplit(" ", 1) for line in lines))
    return digest


def measure(filling: Filling, folder: Path) -> Iterator[str]:
    """Run both migrations; yield the lines of a table."""
    file = folder / "inbox.sqlite3"
    began_s = time.perf_counter()
    asyncio.run(fill(str(file), filling, _RETENTION))
    _log(
        f"file of {file.stat().st_size / 2**20:,.0f} MiB written in "
        f"{time.perf_counter() - began_s:.1f} s"
    )
    with RedisServer.started(folder / "whole") as server:
        whole = CarryCommand(file, server).wait()
        assert whole.status == 0, whole
        result: dict[str, Any] = orjson.loads(whole.output)
        store_s = cpu_us(server.pid) / 1e6
        first = _digest(server)
    _log(f"whole: {whole}")
    with RedisServer.started(folder / "broken") as server:
        for third in (1, 2):
            running = CarryCommand(file, server)
            running.kill_when(server, filling.users * third // 3)
            killed = running.wait()
            _log(f"killed at user {_upto(server):,}, {killed.seconds:.1f} s")
        last = CarryCommand(file, server).wait()
        assert last.status == 0, last
        second = _digest(server)
    _log(f"finished: {last}")
    totals = result["there"]
    same = len(first.items() & second.items())
    yield "| | |"
    yield "|---|---|"
    yield (
        f"| copied | {totals['messages']:,} messages of {filling.data_bytes} bytes, "
        f"{totals['ids']:,} ids, {totals['users']:,} users |"
    )
    yield f"| duration | {whole.seconds:.0f} s, including the comparison |"
    yield f"| processor time of the command | {whole.cpu_s:.1f} s |"
    yield f"| processor time of Redis | {store_s:.1f} s |"
    yield f"| peak memory of the command | {whole.peak_mib:.0f} MiB |"
    yield (
        f"| killed twice (SIGKILL) during the copy, then completed | {same:,} of {len(first):,} "
        "keys the same, "
        f"{len(second.keys() ^ first.keys())} too many or too few |"
    )


def _log(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def main() -> int:
    """Run the benchmark with the arguments of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.migration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--report", type=Path, help="a page with a marked section")
    given = parser.parse_args()
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build, prefix="carry-") as folder:
        filling = Filling(messages=given.messages, users=given.users)
        lines = list(measure(filling, Path(folder)))
    print("\n".join(lines))
    if given.report is not None:
        write_part(given.report, "carry", lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
