"""A throw-away Slurm cluster of plain processes: nodes and GPUs that are scheduled for real and do not exist.

    python tests/slurm/cluster.py up DIR --nodes 2      # then: . DIR/env.sh
    python tests/slurm/cluster.py down DIR

Debian's slurmctld, slurmd, slurm-client and munge are installed by apt where they are missing. Nothing of the system is
used or changed: key, sockets, ports, spool and logs are the folder's own, so two clusters stand side by side.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare")
CONFIG = (Path(__file__).parent / "slurm.conf.in").read_text()


class ClusterError(Exception):
    """Slurm could not be installed or started; the message ends with what its logs say."""


def install() -> None:
    """apt-get install what is missing.

    Raises:
        ClusterError: no apt, no rights, or no network; the suite fails on it and does not skip.
    """
    needed = ("munged", "slurmctld", "slurmd", *CLIENTS)
    if all(shutil.which(name, path=SBIN) for name in needed):
        return
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]
    for command in ([*apt, "update"], [*apt, "install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ClusterError(f"Slurm cannot be installed here: {shlex.join(command)}: {error}") from None
        if done.returncode:
            raise ClusterError(f"Slurm cannot be installed here: {shlex.join(command)}\n{done.stderr[-2000:]}")


class Cluster:
    """One cluster in `folder`.

    Attributes:
        env: variables that reach it: SLURM_CONF, and a PATH whose commands set it again inside jobs (Snakemake's jobstep
            plugin drops every SLURM_ variable; a real cluster has one slurm.conf for all).
    """

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 16, memory: int = 64000, gpus: int = 2) -> None:
        self.folder, self.nodes, self.cpus, self.memory, self.gpus = folder.resolve(), nodes, cpus, memory, gpus
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.conf = self.folder / "slurm.conf"
        self.env = {"SLURM_CONF": str(self.conf), "PATH": f"{self.folder}/bin:{os.environ['PATH']}:{SBIN}"}

    def up(self) -> Cluster:
        """Start munged, slurmctld and one slurmd a node; returns when every node is idle."""
        install()
        for name in ("run", "log", "state", "bin"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self._configure()
        self._munge()
        self.start("slurmctld", "slurmctld", "-D", "-i")
        self._wait("slurmctld", lambda: self._answers("scontrol", "ping"))
        for n in range(1, self.nodes + 1):
            self.start_node(n)
        self._wait(
            "every node", lambda: self.output("sinfo", "-hN", "-p", "cpu", "-o", "%T").split() == ["idle"] * self.nodes
        )
        self._clients()
        return self

    def down(self) -> None:
        """Cancel what runs, then end each daemon by the pid that was kept when it was started."""
        if (self.folder / "run" / "slurmctld.pid").exists():
            self._answers("scancel", "--full", "-u", str(os.getuid()))
            deadline = time.monotonic() + 15
            while time.monotonic() < deadline and self.output("squeue", "-h", "-t", "R,CG"):
                time.sleep(0.2)
        for pid_file in sorted((self.folder / "run").glob("*.pid"), reverse=True):  # munged last
            self.stop(pid_file.stem)
        for pid in self._left():
            os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """What a slurmd that was killed left behind: processes of jobs, known by the slurm.conf that they were given.
        Not the shell of who sourced env.sh: that one has no job."""
        mine = f"SLURM_CONF={self.conf}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):  # gone meanwhile, or another user's
                variables = path.read_bytes().split(b"\0")
                if mine in variables and any(v.startswith(b"SLURM_JOB_ID=") for v in variables):
                    found.append(int(path.parent.name))
        return found

    def start(self, name: str, *command: str) -> None:
        """Start a daemon in its own session, its pid kept under `name`."""
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                                       env={**os.environ, **self.env})  # fmt: skip
        self._children[name] = process
        (self.folder / "run" / f"{name}.pid").write_text(f"{process.pid} {_started(process.pid)}")

    def start_node(self, number: int) -> None:
        """Start (again) the slurmd of ``node<number>``."""
        (self.folder / f"spool.node{number}").mkdir(exist_ok=True)
        self.start(f"slurmd.node{number}", "slurmd", "-D", "-N", f"node{number}")

    def stop(self, name: str, how: signal.Signals = signal.SIGTERM) -> None:
        """End a daemon by its pid, if that pid is still the process that was started."""
        pid_file = self.folder / "run" / f"{name}.pid"
        pid, began = pid_file.read_text().split()
        pid_file.unlink()
        for one in (how, signal.SIGKILL):
            deadline = time.monotonic() + 10
            if _started(int(pid)) == began:
                os.kill(int(pid), one)
            while _started(int(pid)) == began and time.monotonic() < deadline:
                time.sleep(0.05)
        if name in self._children:
            self._children.pop(name).wait()

    def output(self, *command: str) -> str:
        """What a Slurm command prints here; empty where it fails."""
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **self.env}, timeout=60)
        return done.stdout.strip() if done.returncode == 0 else ""

    def finished(self) -> dict[str, dict[str, str]]:
        """Slurm's own log of finished jobs: job id -> its last record (JobState, Partition, NodeList, Tres, ...)."""
        log = self.folder / "log" / "jobcomp.txt"
        lines = log.read_text().splitlines() if log.exists() else []
        records = [dict(w.split("=", 1) for w in line.split() if "=" in w) for line in lines]
        return {r["JobId"]: r for r in records}

    def _answers(self, *command: str) -> bool:
        return subprocess.run(command, capture_output=True, env={**os.environ, **self.env}, timeout=60).returncode == 0

    def _configure(self) -> None:
        ports = _free_ports(self.nodes + 1)
        host = socket.gethostname().split(".")[0]
        lines = [
            f"NodeName=node{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs={self.cpus} "
            f"RealMemory={self.memory} Gres=gpu:fake:{self.gpus} State=UNKNOWN"
            for n in range(1, self.nodes + 1)
        ]
        user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
        text = CONFIG.format(host=host, port=ports[0], user=user, dir=self.folder, nodes="\n".join(lines))
        self.conf.write_text(text)
        for i in range(self.gpus):
            (self.folder / f"gpu{i}").unlink(missing_ok=True)
            (self.folder / f"gpu{i}").symlink_to("/dev/null")
        devices = f"{self.folder}/gpu[0-{self.gpus - 1}]" if self.gpus > 1 else f"{self.folder}/gpu0"
        (self.folder / "gres.conf").write_text(f"AutoDetect=off\nName=gpu Type=fake File={devices}\n")

    def _munge(self) -> None:
        run, key = self.folder / "run", self.folder / "munge.key"
        key.unlink(missing_ok=True)
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(128))
        # --force: a group may write to a temporary folder; the key is as throw-away as the cluster
        self.start("munged", "munged", "--foreground", "--force", f"--socket={run}/munge.sock", f"--key-file={key}",
                   f"--seed-file={run}/munge.seed", f"--pid-file={run}/munged.own",
                   f"--log-file={self.folder}/log/munged.log")  # fmt: skip
        self._wait("munged", lambda: self._answers("munge", "-n", f"--socket={run}/munge.sock"))

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            if time.monotonic() > deadline:
                logs = [f"{p.name}:\n{p.read_text()[-1500:]}" for p in sorted((self.folder / "log").iterdir())]
                self.down()
                raise ClusterError(f"{what} did not come up within 60 s\n" + "\n".join(logs))
            time.sleep(0.1)

    def _clients(self) -> None:
        for name in CLIENTS:
            path = self.folder / "bin" / name
            path.write_text(f'#!/bin/sh\nSLURM_CONF={shlex.quote(str(self.conf))} exec /usr/bin/{name} "$@"\n')
            path.chmod(0o755)
        own = f"{self.folder}/bin"
        (self.folder / "env.sh").write_text(
            f"export SLURM_CONF={shlex.quote(str(self.conf))} PATH={shlex.quote(own)}:$PATH\n"
        )


def _started(pid: int) -> str:
    """When a process began, in ticks since boot; empty where it is gone or a zombie. Tells a pid from its next owner."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] == "Z" else fields[19]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all held until the last is drawn, so that they differ."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=["up", "down"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--gpus", type=int, default=2, help="a node")
    args = parser.parse_args()
    cluster = Cluster(args.folder, args.nodes, gpus=args.gpus)
    try:
        cluster.up() if args.do == "up" else cluster.down()
    except ClusterError as error:
        sys.exit(f"cluster: {error}")


if __name__ == "__main__":
    main()
