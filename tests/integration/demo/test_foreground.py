"""`make demo` gives the terminal back, however make or the demo ends."""

import asyncio
import os
import pty
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tests.conftest import eventually
from tests.processes import is_alive

_FOREGROUND = Path(__file__).parents[3] / "tools" / "foreground.py"


async def test_a_killed_program_is_reported() -> None:
    """`Error 137` alone does not say what happened."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, str(_FOREGROUND), "sh", "-c", "kill -9 $$"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 128 + signal.SIGKILL
    assert done.stderr.startswith("sh was ended by SIGKILL")


async def test_the_shell_survives_a_killed_make(tmp_path: Path) -> None:
    """It ended at the next input, because the terminal belonged to a dead process group."""
    (tmp_path / "Makefile").write_text(
        "demo:\n"
        f"\t@echo $$PPID > make.pid; exec {sys.executable} {_FOREGROUND} "
        "sh -c 'echo $$$$ > program.pid; exec sleep 600'\n"
    )
    controller, terminal = pty.openpty()
    shell = await asyncio.create_subprocess_exec(
        *("bash", "--norc", "-i"),
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        preexec_fn=partial(os.login_tty, terminal),
    )
    os.close(terminal)
    try:
        os.write(controller, b"make demo\n")
        program = tmp_path / "program.pid"
        await eventually(lambda: program.exists() and program.read_text().strip())

        os.kill(int((tmp_path / "make.pid").read_text()), signal.SIGKILL)
        await eventually(lambda: not is_alive(int(program.read_text())))
        os.write(controller, b"touch alive\n")

        await eventually((tmp_path / "alive").exists)
    finally:
        shell.kill()
        await shell.wait()
        os.close(controller)
