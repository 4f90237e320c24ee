"""``imagenet-prep`` in processes of its own, to be killed or to lack disk, files or machines."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagenet_prep.cli.prepare import PREPARED_NAME
from tests.kit.journal import tree

REPOSITORY = Path(__file__).resolve().parents[2]
PREP = [sys.executable, "-m", "imagenet_prep"]
LONGEST_S = 800
_PROGRESS = re.compile(
    r"(crop|stats|build): \d+ of \d+|(layout|note:) .*"
)  # the former: slow machine
_LOOPBACK = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray listens on loopback only, and looks there
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # only for the clusters of these tests
}


def environment(**more: str) -> dict[str, str]:
    """This process's environment, in which this checkout is ``imagenet_prep``."""
    return {**os.environ, **_LOOPBACK, "PYTHONPATH": str(REPOSITORY)} | more


@dataclass(frozen=True)
class Ended:
    """Exit status and output of a process, without progress and notices."""

    status: int
    out: str
    err: str


class Running:
    """A command in a process of its own, with more variables in its environment."""

    def __init__(self, command: Sequence[object], **more: str) -> None:
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=REPOSITORY, env=environment(**more),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip

    def end(self) -> Ended:
        """Waits for its end; kills it after ``LONGEST_S``."""
        with self.process:
            try:
                out, err = self.process.communicate(timeout=LONGEST_S)
            finally:
                self.process.kill()
        lines = [line for line in err.splitlines() if not _PROGRESS.fullmatch(line)]
        return Ended(self.process.returncode, out, "\n".join(lines))

    def strike(self, victim: Callable[[], int | None]) -> int:
        """Kills the first process that ``victim`` finds while this one runs -> its number."""
        while self.process.poll() is None:
            found = victim()
            if found is not None:
                os.kill(found, signal.SIGKILL)
                return found
            time.sleep(0.005)
        raise AssertionError(f"it ended before a process was killed: {self.end()}")


def python(*words: object, **more: str) -> str:
    """This Python with these words, which succeeds -> its stdout."""
    ended = Running([sys.executable, *words], **more).end()
    assert ended.status == 0, f"{ended.out[-3000:]}\n{ended.err[-3000:]}"
    return ended.out


def prep(*arguments: object, **more: str) -> Ended:
    """Runs ``imagenet-prep`` to its end, with more variables in its environment."""
    return Running([*PREP, *arguments], **more).end()


def must(*arguments: object) -> None:
    """Runs ``imagenet-prep``, which succeeds and prints nothing on stderr."""
    ended = prep(*arguments)
    assert (ended.status, ended.err) == (0, ""), ended


def one_message(ended: Ended, status: int = 1) -> str:
    """The error message of a run that failed: one line, no traceback."""
    assert ended.status == status, ended
    lines = ended.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("imagenet-prep: "), ended.err
    return lines[0]


def contents(folder: Path) -> dict[str, str]:
    """Every file below ``folder``, hidden ones included -> the digest of what it holds; without
    ``prepared.json``, which holds the times of the others."""
    found = {name: hashlib.sha256(data).hexdigest() for name, data in tree(folder).items()}
    found.pop(PREPARED_NAME, None)
    return found


def crops_of(cropped: Path) -> dict[str, str]:
    """``contents`` of cropped/ without the statistics."""
    return {name: digest for name, digest in contents(cropped).items() if name != "stats.npz"}


def descendants(process: int) -> list[int]:
    """The processes that ``process`` has started, and those that these have."""
    found = []
    for tasks in Path(f"/proc/{process}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, tasks.read_text().split()):
                found += [child, *descendants(child)]
    return found


def command_line(process: int) -> str:
    """The words of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def free_port() -> int:
    """A port that nobody uses, outside of the range from which the system takes ports."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def _namespaces() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/tmp"]
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


needs_namespaces = pytest.mark.skipif(
    not _namespaces(), reason="needs unshare with user name spaces, to mount or hide a disk"
)
