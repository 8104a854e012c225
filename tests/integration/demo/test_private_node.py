"""The private node starts for any user, survives faults, and leaves nothing behind."""

import asyncio
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final, TypedDict

import aio_pika
import pytest
import pytest_asyncio
from aio_pika.exceptions import AMQPConnectionError

import bridge
from bridge.demo.node_setup import find_rabbitmq, free_ports
from bridge.demo.processes import KeptProcesses
from bridge.errors import PrivateNodeError
from tests.conftest import SLOW_FACTOR, eventually
from tests.local_node import LocalNode
from tests.processes import family_of, is_alive

_NOBODY: Final = 65534

# A parent with a node of its own: prints facts about it, then waits until it is killed.
_PARENT: Final = """
import asyncio, json, os, signal, sys
from bridge.demo.private_node import PrivateNode

# A shell without job control starts background processes with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)

async def main():
    async with PrivateNode.open(ready_within_s=90) as node:
        crash = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, crash.set)
        facts = {"folder": str(node.setup.folder), "pids": node.pids, "uid": os.getuid()}
        print(json.dumps(facts), flush=True)
        if sys.argv[1] == "exception":
            await crash.wait()
            raise RuntimeError("a crash")
        await asyncio.sleep(3600)

asyncio.run(main())
"""


class _NodeFacts(TypedDict):
    """The facts that the parent prints."""

    folder: str
    pids: dict[str, int]
    uid: int


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def node() -> AsyncIterator[LocalNode]:
    """A node that tests may kill and freeze, separate from `broker`."""
    async with LocalNode.start(ready_within_s=90 * SLOW_FACTOR) as own:
        yield own


async def test_a_node_has_its_own_login_and_no_guest(node: LocalNode) -> None:
    """Another program on the machine must not be able to log in with the default password."""
    connection = await aio_pika.connect(node.url, timeout=10)
    await connection.close()

    with pytest.raises(AMQPConnectionError):
        await aio_pika.connect(f"amqp://guest:guest@{node.host}:{node.port}/")


def test_a_node_listens_on_loopback_only(node: LocalNode) -> None:
    """AMQP, distribution and epmd cannot be reached from other machines."""
    listening = [
        address
        for pid in family_of(node.pids["keeper"])
        for address in _listening_addresses(pid)
    ]

    assert len(listening) >= 3
    loopback = {"0100007F", "00000000000000000000000001000000"}
    assert {address.partition(":")[0] for address in listening} <= loopback


async def test_two_nodes_live_side_by_side(broker: LocalNode, node: LocalNode) -> None:
    """A demo and a test run on one machine do not share queues."""
    async with await aio_pika.connect(node.url, timeout=10) as connection:
        channel = await connection.channel()
        await channel.declare_queue("only-here", durable=True)

    assert "only-here" in await node.ctl("list_queues")
    assert "only-here" not in await broker.ctl("list_queues")


async def test_expressions_are_evaluated_on_the_node(node: LocalNode) -> None:
    """Most tests use this instead of rabbitmqctl, which starts an Erlang VM each time."""
    assert await node.evaluate("N = 1, N + 1.") == "2"
    with pytest.raises(PrivateNodeError, match="undef"):
        await node.evaluate("no_such:function().")


@pytest.mark.parametrize(
    ("boot_file", "is_loaded"), [("start_sasl", "true"), ("no_dot_erlang", "false")]
)
async def test_the_helper_that_starts_epmd_does_not_load_the_modules_of_a_node(
    node: LocalNode, boot_file: str, is_loaded: str
) -> None:
    """RabbitMQ starts it as `erl -boot no_dot_erlang`, and it inherits the flags of the node."""
    show = 'io:format("~p", [code:is_loaded(xmerl) =/= false]), halt().'
    process = await asyncio.create_subprocess_exec(
        *("erl", "-boot", boot_file, "-noinput", "-eval", show),
        env=node.setup.node_environment(),
        stdout=subprocess.PIPE,
    )
    async with asyncio.timeout(30 * SLOW_FACTOR):
        output, _ = await process.communicate()

    assert output.decode().endswith(is_loaded)


async def test_a_killed_node_keeps_its_durable_messages(
    node: LocalNode, namespace: str
) -> None:
    """Tests of outages rely on the same address, login and data after a restart."""
    async with await aio_pika.connect(node.url, timeout=10) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(
            namespace, durable=True, arguments={"x-queue-type": "quorum"}
        )
        await channel.default_exchange.publish(
            aio_pika.Message(b"kept", delivery_mode=2), namespace, timeout=10
        )
        # RabbitMQ 3.10 saves its registry of quorum queues every 0.5 s. A kill before
        # that would leave a queue that never answers.
        registers = list(node.folder.glob("data/*/quorum/*/names.dets"))
        assert len(registers) == 1
        await eventually(lambda: namespace.encode() in registers[0].read_bytes())
        await node.kill()
        assert "node" not in node.pids

    await node.restart()

    async with await aio_pika.connect(node.url, timeout=10) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(namespace)
        message = await queue.get(timeout=10)
        assert message is not None
        assert message.body == b"kept"
        await message.ack()


async def test_a_frozen_node_keeps_its_connections_and_answers_when_thawed(
    node: LocalNode,
) -> None:
    """A frozen peer is a fault without a closed connection."""
    async with await aio_pika.connect(node.url, timeout=10) as connection:
        channel = await connection.channel()

        await node.freeze()
        with pytest.raises(TimeoutError):
            await channel.declare_queue("frozen", exclusive=True, timeout=0.5)
        await node.thaw()

        other = await connection.channel()
        await other.declare_queue("thawed", exclusive=True, timeout=10)


async def test_a_frozen_node_can_be_killed_and_stopped() -> None:
    """A test that fails while the node is frozen must still be able to remove it."""
    async with KeptProcesses.open() as kept:
        await kept.start("sleeper", ["sleep", "1000"], {"PATH": os.environ["PATH"]})
        await kept.signal("sleeper", signal.SIGSTOP)
        pid = kept.pids["sleeper"]

    assert not is_alive(pid)


async def test_a_node_may_have_many_files_whatever_the_shell_allows() -> None:
    """With the usual 1024 it accepts no connection any more after some hundred queues."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    try:
        async with KeptProcesses.open() as kept:
            environment = {"PATH": os.environ["PATH"]}
            await kept.start("shell", ["sh", "-c", "ulimit -n"], environment)
            await kept.wait_until_ended("shell", within_s=10 * SLOW_FACTOR)
            output = (kept.folder / "shell.out").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert int(output) == min(hard, 65536)


async def test_processes_that_leave_their_group_are_ended_too() -> None:
    """The VM's port programs have sessions of their own, and daemons leave any group."""
    daemons = "setsid sleep 1000 & (setsid setsid sleep 1000 &) ; echo away"
    async with KeptProcesses.open() as kept:
        folder = kept.folder
        environment = {"PATH": os.environ["PATH"]}
        await kept.start("daemons", ["sh", "-c", daemons], environment)
        await kept.wait_until_ended("daemons", within_s=10 * SLOW_FACTOR)
        # The keeper and the two daemons, which have become its children.
        await eventually(lambda: len(family_of(kept.keeper_pid)) == 3)
        family = family_of(kept.keeper_pid)

    assert not [pid for pid in family if is_alive(pid)]
    assert not folder.exists()


async def test_processes_end_when_the_keeper_is_killed() -> None:
    """The out-of-memory killer may choose the keeper; the node must not outlive it."""
    async with KeptProcesses.open() as kept:
        await kept.start("sleeper", ["sleep", "1000"], {"PATH": os.environ["PATH"]})
        pid = kept.pids["sleeper"]
        os.kill(kept.keeper_pid, signal.SIGKILL)

        await eventually(lambda: not is_alive(pid))
        with pytest.raises(PrivateNodeError, match="keeper"):
            await kept.signal("sleeper", signal.SIGCONT)
        shutil.rmtree(kept.folder)


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT", "exception"])
async def test_nothing_is_left_however_the_parent_ends(end: str) -> None:
    """Ctrl-C, a crash, kill -9: no process and no folder stays on the machine."""
    parent = _start_parent(
        [sys.executable, "-c", _PARENT, end],
        {**os.environ, "PYTHONPATH": _source_folder()},
    )
    facts = await _facts_of(parent)
    family = family_of(facts["pids"]["keeper"])
    assert len(family) >= 4

    if end == "exception":
        os.kill(parent.pid, signal.SIGUSR1)  # after `family` was recorded
    else:
        os.killpg(parent.pid, getattr(signal, end))

    await _assert_nothing_left(parent, facts, family)


async def test_an_ordinary_user_can_run_a_node(public_copy: Path) -> None:
    """`make demo` needs no root. If the test runs as root, it switches to `nobody`."""
    python, become = _ordinary_python()
    home = public_copy / "home"
    parent = _start_parent(
        [*become, python, "-P", "-c", _PARENT, "wait"],
        {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(public_copy),
            "HOME": str(home),
            "TMPDIR": str(home),
        },
    )
    facts = await _facts_of(parent)
    assert facts["uid"] != 0
    assert Path(facts["folder"]).parent == home
    family = family_of(facts["pids"]["keeper"])

    parent.kill()

    await _assert_nothing_left(parent, facts, family)


async def test_a_failed_start_shows_the_log() -> None:
    """The log is removed with the folder, so the error contains the end of it."""
    with pytest.raises(PrivateNodeError, match="no_such_setting"):
        async with LocalNode.start(extra_config=["no_such_setting = 1"]):
            pass


@pytest.mark.parametrize("which", ["amqp", "distribution", "epmd"])
async def test_a_port_taken_by_another_program_is_replaced(
    which: str, broker: LocalNode
) -> None:
    """Another program may take a port after it was chosen."""
    good = await asyncio.to_thread(free_ports)
    choices = iter([replace(good, **{which: broker.port}), good])
    said: list[str] = []

    async with LocalNode.start(
        progress=said.append, choose_ports=lambda: next(choices)
    ) as node:
        assert node.port != broker.port

    assert any("taken" in sentence for sentence in said)


async def test_a_cancelled_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is Ctrl-C during the start of the demo."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    async def start() -> None:
        async with LocalNode.start():
            pytest.fail("the start was not cancelled")

    async with asyncio.TaskGroup() as tasks:
        starting = tasks.create_task(start(), name="starting")
        await eventually(lambda: list(tmp_path.glob("*/node.out")))
        starting.cancel()

    await eventually(lambda: not list(tmp_path.iterdir()))


def test_a_missing_rabbitmq_is_reported_with_a_fix(tmp_path: Path) -> None:
    """This is the first error that a new user may see."""
    with pytest.raises(PrivateNodeError, match="apt-get install rabbitmq-server"):
        find_rabbitmq([tmp_path])


def test_rabbitmq_home_selects_another_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tests can run with a version that the system does not have."""
    program = tmp_path / "sbin" / "rabbitmq-server"
    program.parent.mkdir()
    program.touch(mode=0o700)
    monkeypatch.setenv("RABBITMQ_HOME", str(tmp_path))

    assert find_rabbitmq() == tmp_path / "sbin"


@pytest.fixture
def public_copy() -> Iterator[Path]:
    """A copy of bridge that every user can read, with a home folder beside it."""
    source = Path(_source_folder())
    folder = Path(tempfile.mkdtemp(prefix="bridge-test-"))
    try:
        shutil.copytree(
            source / "bridge",
            folder / "bridge",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        home = folder / "home"
        home.mkdir()
        if os.getuid() == 0:
            os.chown(home, _NOBODY, _NOBODY)
            subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        yield folder
    finally:
        shutil.rmtree(folder)


def _source_folder() -> str:
    return str(Path(bridge.__file__).parents[1])


def _ordinary_python() -> tuple[str, list[str]]:
    """Return a Python, and the command prefix that runs it as an ordinary user."""
    if os.getuid() != 0:
        return sys.executable, []
    # `env` resolves the program after the switch; setpriv would search root's PATH.
    ids = [f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"]
    become = ["setpriv", *ids, "env"]
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    # Root's own Python may be in a folder that other users cannot read.
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        tried = subprocess.run(
            [*become, python, "-c", check], check=False, stderr=subprocess.DEVNULL
        )
        if tried.returncode == 0:
            return python, become
    pytest.fail("no Python 3.11 that an ordinary user may run: install python3")


def _start_parent(
    program: list[str], environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd="/",
        start_new_session=True,  # like the foreground group of a terminal
    )


async def _facts_of(parent: subprocess.Popen[bytes]) -> _NodeFacts:
    """Read the facts from the parent, or fail with its output."""
    assert parent.stdout is not None
    async with asyncio.timeout(90 * SLOW_FACTOR):
        line = await asyncio.to_thread(parent.stdout.readline)
    if not line:
        pytest.fail(f"the parent ended: {parent.communicate()}")
    facts: _NodeFacts = json.loads(line)
    return facts


async def _assert_nothing_left(
    parent: subprocess.Popen[bytes], facts: _NodeFacts, family: list[int]
) -> None:
    await asyncio.to_thread(parent.communicate)
    await eventually(lambda: not [pid for pid in family if is_alive(pid)])
    await eventually(lambda: not Path(facts["folder"]).exists())


def _listening_addresses(pid: int) -> list[str]:
    """Return the local addresses of `pid`'s listening TCP sockets, as in /proc/net/tcp."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = str(link.readlink())
        if target.startswith("socket:["):
            inodes.add(target[len("socket:[") : -1])
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        if not Path(table).exists():
            continue
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.append(fields[1])
    return found


def test_a_keeper_whose_parent_ends_at_its_start_prints_no_traceback(
    tmp_path: Path,
) -> None:
    """Ctrl-C in the first second of `bridge demo` ended in a BrokenPipeError."""
    program = Path(bridge.__file__).parent / "demo" / "process_keeper.py"
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-I", program],
            env={"TMPDIR": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60 * SLOW_FACTOR,
            check=False,
        )
    finally:
        os.close(writer)

    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []
