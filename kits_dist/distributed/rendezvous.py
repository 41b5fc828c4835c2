"""The process group: ranks meet before anything else happens, and a rank that is missing or gone is named.

torch.distributed alone waits up to half an hour for a rank that was never started, and then names none. It also cannot
be started twice under one launcher (`--max_restarts`, tried on torch 2.15): the launcher keeps its store, where the
second attempt finds the addresses of dead processes. So ranks meet here first, in a numbered meeting and within a
deadline, and only then the process group is created.
"""

import os
import socket
import struct
import sys
import time
import traceback
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate.utils import gather_object
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from kits_dist.distributed.launcher import environ_int
from kits_dist.utils.errors import InputError, JobFailed

_POLL_S = 0.1  # between two looks at the store
# parts of the RuntimeErrors that gloo raises about another process; those of nccl have the class dist.DistError
_MESH = "Gloo connectFullMesh failed"
_OF_GLOO = (_MESH, "gloo/transport/", "Application timeout caused pair closure")
_PACKAGE = Path(__file__).parents[1]
_SIOCGIFADDR = 0x8915  # ioctl(2): the address of an interface


def join(
    backend: str, timeout_s: int, collective_timeout_s: int | None = None, timeout_name: str = "train.timeout_s"
) -> None:
    """Create the default process group of all launched processes; a process that was started alone needs none.

    backend                nccl or gloo
    timeout_s              how long to wait for the others here
    collective_timeout_s   how long to wait for them in each collective; None: `timeout_s`, too
    timeout_name           what messages call `timeout_s`: the configuration key, where there is one

    Raises JobFailed naming the missing ranks, InputError when the launcher's environment is incomplete.
    """
    world = environ_int("WORLD_SIZE", 1)
    if world == 1:
        return
    rank, port = environ_int("RANK"), environ_int("MASTER_PORT")
    host = os.environ.get("MASTER_ADDR", "")
    if not host:
        raise InputError(
            f"WORLD_SIZE={world} but no MASTER_ADDR in the environment. Start it with a launcher, or alone: unset "
            "WORLD_SIZE"
        )
    if not 0 < port < 2**16:
        raise InputError(f"MASTER_PORT={port} in the environment is no port: use 1..65535.")
    if environ_int("LOCAL_WORLD_SIZE", world) < world:
        # Debian gives a machine's own name the address 127.0.1.1, and gloo would offer that one to other machines
        interface = _interface_towards(host, port)
        if interface:
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        store = _store(host, port, rank, world, timeout_s, timeout_name)
        number = _meet(store, rank, world, timeout_s, f"{host}:{port}", timeout_name)
        dist.init_process_group(
            backend,
            store=PrefixStore(f"meeting_{number}", store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=collective_timeout_s or timeout_s),
        )
    except dist.DistError as error:
        raise JobFailed(
            f"rank {rank} of {world} could not meet the others at {host}:{port}: {_first_words(error)}. Does another "
            "program use this port, or did rank 0 print anything?"
        ) from error


def explain(error: Exception) -> str:
    """Return what an error in the exchange between processes means; "" when `error` is about something else.

    Errors of gloo are about other processes. Those of nccl and of the store may be about another rank or this GPU.
    """
    if not (isinstance(error, dist.DistError) or _is_of_gloo(error)):
        return ""
    who = f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
    if _MESH in str(error):
        return (
            f"{who} met the others, but they cannot reach each other ({_first_words(error)}). Name the network between "
            "the machines: GLOO_SOCKET_IFNAME=eth0, NCCL_SOCKET_IFNAME=eth0 (ip -br addr lists them)."
        )
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    where = ""
    if frames:
        code = (frames[-1].line or "").split("  #")[0]
        where = f" in `{code}` ({Path(frames[-1].filename).name}:{frames[-1].lineno})"
    if not _is_of_gloo(error):
        return (
            f"{who} could not exchange with the others{where}: {_first_words(error)}. Either one of them is gone or "
            "silent, or this process's own GPU or network failed: NCCL_DEBUG=WARN says which."
        )
    return (
        f"{who} waited for the others{where}, and one of them is gone or silent: {_first_words(error)}. If it said "
        "nothing itself, it was killed, or its machine or the network between them failed."
    )


def refuse_differences(settings: dict[str, Any]) -> None:
    """Raise InputError, on all ranks alike, when {name: value} differs between them. All ranks must call it."""
    everywhere = gather_object([(socket.gethostname(), settings)])
    for rank, (machine, others) in enumerate(everywhere):
        for key, value in everywhere[0][1].items():
            if others[key] != value:
                raise InputError(
                    f"{key} is {others[key]} for rank {rank} ({machine}) but {value} for rank 0 ({everywhere[0][0]}). "
                    "Give every machine the same arguments, the same store, and one run folder that all of them share."
                )


def _store(host: str, port: int, rank: int, world: int, timeout_s: int, timeout_name: str) -> Store:
    """Return the store of the launcher (torchrun, accelerate) if it has one, else one that rank 0 serves."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:  # TCPStore waits, too, but prints a page of C++ frames when its time is up
        _wait_for_port(host, port, rank, world, timeout_s, timeout_name)
    return TCPStore(host, port, world, serves, timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True)


def _wait_for_port(host: str, port: int, rank: int, world: int, timeout_s: float, timeout_name: str) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(_POLL_S)
                continue
            raise JobFailed(
                f"rank {rank} of {world} found no process at {host}:{port} within {timeout_name}={timeout_s:g} "
                f"({error}). "
                "Was rank 0 started, with this address and port? Between machines: is the port open?"
            ) from error


def _meet(
    store: Store, rank: int, world: int, timeout_s: float, place: str, timeout_name: str = "train.timeout_s"
) -> int:
    """Wait until all ranks are there. Returns the number of their meeting.

    Rank 0 opens a meeting each time it is started. A rank does not enter a meeting that an earlier process of its rank
    (killed, then started again) has entered: it waits for the next one.
    """
    me = f"{socket.gethostname()} {uuid.uuid4().hex}"
    everyone = range(world)
    number = store.add("meetings", int(rank == 0))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if rank:
            number = store.add("meetings", 0)
        if number and store.compare_set(f"{number}/{rank}", "", me).decode() == me:
            if rank == 0 and store.check([f"{number}/{other}" for other in everyone]):
                store.set(f"{number}/begun", "")
            if store.check([f"{number}/begun"]):
                return number
        time.sleep(_POLL_S)
    came = [other for other in everyone if store.check([f"{number}/{other}"])]
    there = {other: store.get(f"{number}/{other}").decode().split()[0] for other in came}
    raise JobFailed(missing_ranks(there | {rank: socket.gethostname()}, world, place, timeout_s, timeout_name))


def missing_ranks(
    present: dict[int, str], world: int, place: str, timeout_s: float, timeout_name: str = "train.timeout_s"
) -> str:
    """Return the message about ranks that did not come. present: {rank: machine} of those that did."""
    machines: dict[str, list[int]] = {}
    for rank, machine in present.items():
        machines.setdefault(machine, []).append(rank)
    came = "; ".join(f"{machine}: rank {_listed(ranks)}" for machine, ranks in machines.items())
    absent = [rank for rank in range(world) if rank not in present]
    return (
        f"{len(present)} of {world} processes joined at {place} within {timeout_name}={timeout_s:g} ({came}). "
        f"Missing: rank {_listed(absent)}. Was the launcher started on every machine, and did those "
        "processes print anything?"
    )


def _listed(ranks: list[int]) -> str:
    """Return 0, 1, 2, 3, 6 as 0..3, 6."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _is_of_gloo(error: Exception) -> bool:
    return any(text in str(error) for text in _OF_GLOO)


def _first_words(error: Exception) -> str:
    """Return the message without gloo's source line before and its advice after it; nccl names the cause last."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = lines[0].split("] ", 1)[-1].split(". This is", 1)[0].strip().rstrip(".")
    return f"{words} ({lines[-1].strip()})" if "Last error:" in lines[:-1] else words


def _interface_towards(host: str, port: int) -> str | None:
    """Return the network interface by which this machine reaches `host`; None for loopback or where not known."""
    if sys.platform != "linux":
        return None
    import fcntl

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))  # looks up the route, sends nothing
            address = probe.getsockname()[0]
            if address.startswith("127."):
                return None
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                except OSError:  # has no IPv4 address
                    continue
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    except OSError:  # unknown host, or no route: the store will report it
        return None
    return None
