"""A real SLURM on one machine, for tests: a controller and two node daemons of Debian's slurm-wlm, no systemd, no cgroups.

    with Cluster.start(folder) as cluster:      # a second
        subprocess.run(["sbatch", …])           # SLURM_CONF is set

Everything it needs lies in `folder`: several may run at once. The daemons die with this process.
"""

from __future__ import annotations

import ctypes
import fcntl
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurm-wlm", "munge")
DAEMONS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol")
PATHS = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/usr/local/sbin"])
CONF = """
ClusterName=dumbo
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
# A job that is put back begins again after cred_expire seconds: 120, or from 5 on what is said.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
JobRequeue=1
# An srun that waits for a lost node gives up KillWait + 2 seconds later, and must do so before its job begins again.
KillWait={kill_wait}
MinJobAge={remembers}
SlurmctldTimeout=60
SlurmdTimeout={lost_after}
InactiveLimit=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmctldPort={ports[0]}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=8 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=8 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=hi Nodes=n[1-2] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def install() -> str | None:
    """Brings SLURM where it lacks and can be brought; why not, else None."""
    with (Path(tempfile.gettempdir()) / "dumbo-tests-slurm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _absent():
            return None
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            return f"SLURM is not installed ({', '.join(_absent())}): apt-get install {' '.join(PACKAGES)}"
        quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
        subprocess.run(["apt-get", "update"], **quiet)  # what it knows already may do
        done = subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES], **quiet)
        return f"SLURM cannot be installed: {done.stderr[-500:]}" if _absent() else None


def _absent() -> list[str]:
    return [name for name in DAEMONS if shutil.which(name, path=PATHS) is None]


@dataclass
class Cluster:
    """Controller and two nodes, n1 and n2; partitions `main` (may be preempted) and `hi` (preempts it).

    Attributes:
        folder: configuration, logs, state.
    """

    folder: Path
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def start(
        cls, folder: Path, *, remembers: int = 300, lost_after: int = 10, kill_wait: int = 2
    ) -> Iterator[Cluster]:
        """Runs one for the length of the block, SLURM_CONF set.

        Args:
            folder: its own, with a short path (it holds a socket).
            remembers: seconds that the controller knows a job after its end.
            kill_wait: seconds that a job which was cancelled has to save.
            lost_after: seconds after which a node that does not answer is lost.
        """
        cluster = cls(folder)
        before = {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")}
        os.environ.update(SLURM_CONF=str(folder / "slurm.conf"), PATH=PATHS)
        try:
            cluster._write(remembers, lost_after, kill_wait)
            cluster._daemon("munged", "--foreground", "--force", *cluster._munge())
            cluster._until((folder / "munge" / "socket").exists)
            cluster._daemon("slurmctld", "-D", "-c")
            cluster.node("n1")
            cluster.node("n2")
            cluster.until_idle()
            yield cluster
        finally:
            cluster.stop()
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def _write(self, remembers: int, lost_after: int, kill_wait: int) -> None:
        for name in ("munge", "state", "spool-n1", "spool-n2"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        (self.folder / "munge" / "key").write_bytes(os.urandom(128))
        (self.folder / "munge" / "key").chmod(0o600)
        host, user = socket.gethostname().partition(".")[0], getpass.getuser()
        told = {"host": host, "user": user, "folder": self.folder, "ports": _free_ports(3)}
        (self.folder / "slurm.conf").write_text(
            CONF.format(**told, remembers=remembers, lost_after=lost_after, kill_wait=kill_wait)
        )

    def _munge(self) -> list[str]:
        place = self.folder / "munge"
        names = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        return [f"--{option}={place / name}" for option, name in names.items()]

    def _daemon(self, name: str, *options: str, known_as: str | None = None) -> None:
        prctl = ctypes.CDLL(None).prctl
        out = (self.folder / f"{known_as or name}.out").open("ab")
        self.daemons[known_as or name] = subprocess.Popen(
            [name, *options], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            preexec_fn=lambda: prctl(1, signal.SIGTERM),
        )  # fmt: skip

    def node(self, name: str) -> None:
        """Starts a node's daemon."""
        self._daemon("slurmd", "-D", "-c", "-N", name, known_as=name)

    def lose(self, name: str) -> None:
        """A node goes, with all that it runs: daemon, steps, jobs."""
        marks = (f"SLURMD_NODENAME={name}".encode(), f"SLURM_CONF={self.folder / 'slurm.conf'}".encode())
        jobs = [pid for pid in _pids() if all(mark in _bytes(pid, "environ").split(b"\0") for mark in marks)]
        parents = [int(stat.rpartition(b")")[2].split()[1]) for pid in jobs if (stat := _bytes(pid, "stat"))]
        steps = {pid for pid in parents if _bytes(pid, "comm").strip() == b"slurmstepd"}
        self.daemons[name].kill()
        self.daemons[name].wait()
        kill([*steps, *jobs])

    def until_idle(self) -> None:
        """Waits until both nodes are up and free."""
        idle = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N")
        self._until(lambda: self.said(*idle).split() == ["n1", "n2"])

    def stop(self) -> None:
        """Ends the jobs, then the daemons."""
        if "slurmctld" in self.daemons and self.daemons["slurmctld"].poll() is None:
            subprocess.run(["scancel", "--user", getpass.getuser()], capture_output=True)
            end = time.monotonic() + 10
            while self.said("squeue", "-h") and time.monotonic() < end:
                time.sleep(0.1)
        for name in ("slurmctld", "n1", "n2", "munged"):
            if name in self.daemons:
                self.daemons[name].terminate()
        for daemon in self.daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def said(self, *command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    def state(self, job: str) -> str:
        """SLURM's word for a job's state."""
        return self.said("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").partition("\n")[0]

    def _until(self, true: Callable[[], bool], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                logs = "\n".join(
                    f"{path.name}: {path.read_text(errors='replace')[-1000:]}" for path in self.folder.glob("*.out")
                )
                raise TimeoutError(f"SLURM does not come up:\n{logs}")
            time.sleep(0.05)


def processes_of(*marks: str) -> list[int]:
    """Processes whose command line has all of these."""
    return [pid for pid in _pids() if all(mark.encode() in _bytes(pid, "cmdline").replace(b'"', b"") for mark in marks)]


def kill(pids: Iterable[int]) -> None:
    """At once, as the kernel does when memory is full."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def _bytes(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def _free_ports(count: int) -> list[int]:
    """Below the range that the system gives out to connections."""
    found: list[int] = []
    for port in range(6900 + os.getpid() % 1000, 32000):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")
