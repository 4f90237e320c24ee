"""Two hosts rehearsed on one machine: a run over a link that is cut in the middle of it.

    python tools/rehearse_hosts.py [--cut-s 20] [--timeout-s 60] [--beton train.beton] [...]

Two network namespaces are the hosts, a pair of virtual interfaces is the link, and in each of
them torchrun starts one process of ``trainer run``, each with a folder of its own for the run.
When the first checkpoint inside an epoch is there, the link is unplugged for --cut-s seconds.
Prints the output of each process and how it ended, and looks at every file that bears a final name.
Ends with 0 if the run was finished with whole files, or if every process ended by itself with
one error message and the files are whole; with 1 otherwise; with 2, and the reason, where there can
be no namespaces: that needs root, Linux and iproute2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
ADDRESSES = ("10.77.77.1", "10.77.77.2")
LOOK_S = 0.02
WORDS = (
    "--preset small --epochs 2 --batch-size 4 --checkpoint-every 2 --crop-size 56 --device cpu "
    "--precision float32 --jobs 1"
)


class ImpossibleError(Exception):
    """Why there can be no rehearsal here."""


def ip(*words: str) -> None:
    """``ip`` with these words; ImpossibleError with its message when it refuses."""
    ended = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=30)
    if ended.returncode:
        raise ImpossibleError(f"ip {' '.join(words)}: {ended.stderr.strip()}")


@dataclass(frozen=True)
class Hosts:
    """Two network namespaces with one link between them."""

    names: tuple[str, str]
    links: tuple[str, str]

    def inside(self, host: int) -> list[str]:
        """What to put before a command so that it runs on that host."""
        return ["ip", "netns", "exec", self.names[host]]

    def clear(self) -> None:
        """Ends every process that is left on the hosts."""
        for name in self.names:
            listed = subprocess.run(
                ["ip", "netns", "pids", name], capture_output=True, text=True, check=False
            )
            for process in map(int, listed.stdout.split()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def plug(self, *, state: str) -> None:
        """``down`` unplugs the second host's end of the link, ``up`` plugs it in."""
        ip("-n", self.names[1], "link", "set", self.links[1], state)


@contextlib.contextmanager
def two_hosts() -> Iterator[Hosts]:
    """The hosts; they and their link are gone afterwards. ImpossibleError where none can be."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        raise ImpossibleError("network namespaces need Linux and the command ip (iproute2)")
    if os.geteuid() != 0:
        raise ImpossibleError("network namespaces need root")
    number = os.getpid()
    hosts = Hosts((f"alex{number}a", f"alex{number}b"), (f"al{number}a", f"al{number}b"))
    try:
        for name in hosts.names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        first, second = hosts.links
        ip(
            *("link", "add", first, "netns", hosts.names[0], "type", "veth"),
            *("peer", "name", second, "netns", hosts.names[1]),
        )
        for name, link, address in zip(hosts.names, hosts.links, ADDRESSES, strict=True):
            ip("-n", name, "address", "add", f"{address}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
        yield hosts
    finally:
        for name in hosts.names:
            with contextlib.suppress(ImpossibleError):
                ip("netns", "del", name)


@dataclass
class Process:
    """The process of one host, with its output."""

    host: int
    running: subprocess.Popen[bytes]
    log: Path

    @property
    def lines(self) -> list[str]:
        """Its output so far."""
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()


def command(told: argparse.Namespace, host: int, folder: Path) -> list[str]:
    """What starts the run on ``host``: torchrun, or with --direct the trainer itself."""
    run = ["-m", *told.program.split(), "--beton", str(told.beton), "--out", str(folder / "run")]
    run += ["--timeout", f"{told.timeout_s:g}", *told.words.split()]
    if told.direct:
        return [sys.executable, *run]
    torchrun = ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    torchrun += ["--max-restarts", str(told.restarts), "--rdzv-backend", "c10d"]
    torchrun += ["--rdzv-id", f"rehearsal{os.getpid()}", "--rdzv-endpoint", f"{ADDRESSES[0]}:29400"]
    torchrun += ["--rdzv-conf", f"is_host={int(host == 0)}", "--local-addr", ADDRESSES[host]]
    return [sys.executable, *torchrun, *run]


def start(told: argparse.Namespace, hosts: Hosts, host: int, work: Path) -> Process:
    """Starts the run on ``host``; it works and writes in a folder of its own."""
    folder = work / f"host{host + 1}"
    folder.mkdir()
    variables = {"PYTHONPATH": str(REPOSITORY), "GLOO_SOCKET_IFNAME": hosts.links[host]}
    variables["OMP_NUM_THREADS"] = "1"
    if told.direct:
        variables |= {"RANK": str(host), "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
        variables |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29400"}
    log = work / f"host{host + 1}.log"
    with log.open("wb") as file:
        running = subprocess.Popen(
            [*hosts.inside(host), *command(told, host, folder)],
            cwd=folder, env=os.environ | variables, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    return Process(host, running, log)


def ended(processes: list[Process]) -> bool:
    """Whether none of them runs any more."""
    return all(process.running.poll() is not None for process in processes)


def wait(processes: list[Process], seconds: float, until: Path | None = None) -> bool:
    """Waits for the file ``until``, or for the end of all; False after ``seconds``."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if ended(processes) or (until is not None and until.exists()):
            return True
        time.sleep(LOOK_S)
    return False


def rehearse(told: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Runs, cuts, mends -> what happened, as JSON values."""
    with two_hosts() as hosts:
        processes = [start(told, hosts, host, work) for host in range(2)]
        try:
            last = work / "host1" / "run" / "last.pt"
            wait(processes, told.limit_s, until=last)
            struck = last.exists() and not ended(processes)
            if struck:
                say(f"first checkpoint written: the link is cut for {told.cut_s:g} s")
                hosts.plug(state="down")
                wait(processes, told.cut_s)
                ended_in_cut = ended(processes)
                hosts.plug(state="up")
                say("the link is back")
            in_time = wait(processes, told.limit_s)
        finally:
            hosts.clear()
            for process in processes:
                process.running.wait()
    return {
        "cut": struck,
        "ended_in_the_cut": struck and ended_in_cut,
        "ended_by_themselves": in_time,
        "statuses": [process.running.returncode for process in processes],
        "output": [process.lines for process in processes],
        "damaged": damaged(work / "host1" / "run"),
        "written_by_host_2": sorted(str(path) for path in (work / "host2").rglob("*")),
    }


def damaged(run: Path) -> list[str]:
    """What is wrong with the files of ``run`` that bear a final name; nothing else looks so."""
    from imagenet_prep.core.errors import ToolError
    from trainer.checkpoint import load_checkpoint
    from trainer.report.metrics import read_metrics

    found = []
    for path in sorted(run.glob("*")):
        try:
            if path.suffix == ".pt":
                load_checkpoint(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.name == "metrics.jsonl":
                read_metrics(run)
            elif path.name == "report.html" and "</html>" not in path.read_text(encoding="utf-8"):
                found.append(f"{path}: has no end")
        except (ToolError, OSError, ValueError) as error:
            found.append(str(error))
    return found


def say(line: str) -> None:
    """A line on stderr."""
    print(f"rehearse_hosts: {line}", file=sys.stderr, flush=True)


def messages(lines: list[str]) -> list[str]:
    """The trainer's error messages."""
    return [line for line in lines if line.startswith("trainer: rank ")]


def verdict(found: dict[str, Any]) -> tuple[int, str]:
    """The exit status, and what happened."""
    if not found["cut"]:
        return 1, "the run did not come as far as the cut"
    if found["damaged"]:
        return 1, f"damaged: {'; '.join(found['damaged'])}"
    if not found["ended_by_themselves"]:
        return 1, "a process did not end by itself"
    restarts = min(len(messages(lines)) for lines in found["output"])
    if found["statuses"] == [0, 0]:
        how = f"after {restarts} restarts" if restarts else "without a restart"
        return 0, f"the run was finished {how}; every file is whole"
    if all(len(messages(lines)) == 1 for lines in found["output"]):
        return 0, "every process ended with one error message; every file is whole"
    return 1, f"the processes ended with {found['statuses']} and more than one error message"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Two hosts whose link is cut in mid-run.")
    parser.add_argument("--beton", type=Path, required=True, help="the training set")
    parser.add_argument("--cut-s", type=float, default=20.0, help="how long the link is cut")
    parser.add_argument("--timeout-s", type=float, default=60.0, help="the run's --timeout")
    parser.add_argument("--limit-s", type=float, default=600.0, help="of each phase of this script")
    parser.add_argument("--restarts", type=int, default=3, help="torchrun's --max-restarts")
    parser.add_argument("--direct", action="store_true", help="the trainer without torchrun")
    parser.add_argument("--words", default=WORDS, help="the options of trainer run")
    parser.add_argument("--program", default="trainer run", help="the module and its first words")
    parser.add_argument("--json", action="store_true", help="what happened as JSON on stdout")
    told = parser.parse_args()
    told.beton = told.beton.absolute()
    return told


def main() -> int:
    """The program; its exit status is above."""
    told = options()
    sys.path.insert(0, str(REPOSITORY))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through every finally
    with tempfile.TemporaryDirectory() as work:
        try:
            found = rehearse(told, Path(work))
        except ImpossibleError as error:
            say(str(error))
            return 2
    status, message = verdict(found)
    if told.json:
        print(json.dumps(found | {"status": status, "verdict": message}))
    else:
        for host, lines in enumerate(found["output"], 1):
            print("\n".join(f"host {host}: {line}" for line in lines))
        print(f"statuses {found['statuses']}; {message}")
    return status


if __name__ == "__main__":
    sys.exit(main())
