"""Run a SLURM cluster of two nodes on this machine, with its files in one folder.

Needs slurmctld, slurmd and munged (Debian: slurmctld slurmd slurm-client munge). They are installed only with
INSTALL_SLURM=1 in the environment, as in .ci/run, so that tests on a laptop install nothing.
"""

import contextlib
import getpass
import os
import random
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
PACKAGES = ("munge", "slurmctld", "slurmd", "slurm-client")
NODES = ("n1", "n2")


class NoCluster(Exception):
    """There is no cluster on this machine; the message says why."""


class Cluster:
    def __init__(self, folder: Path):
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "CUDA_VISIBLE_DEVICES": ""}

    def ask(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            command, env=self.environment | environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def state(self, job: str) -> str:
        """RUNNING, PENDING, COMPLETED, ..."""
        return re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", job)).group(1)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start the daemons and stop them at the end of the block. Raises NoCluster where programs are missing or fail."""
    if missing := [name for name in PROGRAMS if not _found(name)]:
        if os.environ.get("INSTALL_SLURM") != "1":
            raise NoCluster(f"no {', '.join(missing)} here: apt-get install {' '.join(PACKAGES)}, or INSTALL_SLURM=1")
        _install()
    _configure(folder)
    here = Cluster(folder)
    names = ("socket", "key-file", "log-file", "pid-file", "seed-file")
    daemons = [
        # --force: munged refuses folders that other users cannot enter, as those of pytest
        ["munged", "--foreground", "--force", *(f"--{name}={folder / 'munge' / name}" for name in names)],
        ["slurmctld", "-D", "-c"],
        *(["slurmd", "-D", "-N", node] for node in NODES),
    ]
    running = []
    try:
        for daemon in daemons:
            with open(folder / "daemons.log", "ab") as log:
                command = [_found(daemon[0]), *daemon[1:]]
                running.append(subprocess.Popen(command, env=here.environment, stdout=log, stderr=log))
            time.sleep(1)
        _wait_until_idle(here, running, folder)
        yield here
        here.ask("scancel", "--user", getpass.getuser())
        deadline = time.monotonic() + 60
        while here.ask("squeue", "--noheader") and time.monotonic() < deadline:
            time.sleep(0.5)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait(30)


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _install() -> None:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        try:
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True, timeout=600)
        except OSError as error:
            raise NoCluster(f"INSTALL_SLURM=1, but there is no apt-get here ({error})") from error
        if done.returncode:
            raise NoCluster(f"apt-get {command[0]} failed: {done.stderr[-500:]}")


def _configure(folder: Path) -> None:
    for name in ("state", "munge", *(f"spool/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "munge" / "key-file").write_bytes(os.urandom(64))
    (folder / "munge" / "key-file").chmod(0o400)
    (folder / "munge").chmod(0o711)
    control, first, second = free_ports(3)
    (folder / "slurm.conf").write_text(f"""
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser={getpass.getuser()}
SlurmdUser={getpass.getuser()}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
# without control groups, which containers rarely allow to change
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=60
SchedulerParameters=sched_interval=2,batch_sched_delay=1,bf_interval=3
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={NODES[0]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={first} CPUs=1 State=UNKNOWN
NodeName={NODES[1]} NodeHostname=localhost NodeAddr=127.0.0.1 Port={second} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2 State=UP
""")
    # slurmd 22.05 does not know `disabled`; with `cgroup/v1` it uses none as long as no plugin above needs one
    version = tuple(map(int, re.findall(r"\d+", subprocess.check_output([_found("slurmd"), "-V"], text=True))[:2]))
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if version >= (23, 11) else 'cgroup/v1'}\n")


def free_ports(count: int) -> list[int]:
    """Return ports below those that the system assigns itself, different for each worker of pytest: they stay free."""
    first = 20000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 10)
    found: list[int] = []
    for port in random.sample(range(first, first + 1000), 1000):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports from {first} on")


def _wait_until_idle(here: Cluster, running: list[subprocess.Popen], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and all(process.poll() is None for process in running):
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=all", "--format=%T"],
            env=here.environment,
            capture_output=True,
            text=True,
        )
        if done.stdout.split() == ["idle"] * len(NODES):
            return
        time.sleep(0.5)
    log = (folder / "daemons.log").read_text(errors="replace")
    ended = [process.args[0] for process in running if process.poll() is not None]
    raise NoCluster(f"SLURM's daemons do not start here ({ended} ended): {log[-1000:]}")
