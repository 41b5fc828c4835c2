"""The process group: every rank meets the others before anything else is done, and says who is missing or gone.

torch.distributed alone waits up to half an hour for a rank that was never started, then shows a traceback that names
none. It also cannot be started twice under one launcher (`--max_restarts`, tried on torch 2.15): the launcher keeps its
store, where the second attempt finds the addresses of dead processes. So ranks meet here, by number and within a
deadline, and only then is the group made.
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

from kits_dist.distributed.launcher import whole_number
from kits_dist.utils.errors import InputError, JobFailed

_LOOK_S = 0.1  # between two looks at the store
# Texts of RuntimeErrors about another process; nccl's are of the class dist.DistError.
_MESH = "Gloo connectFullMesh failed"
_OF_GLOO = (_MESH, "gloo/transport/", "Application timeout caused pair closure")
_PACKAGE = Path(__file__).parents[1]
_SIOCGIFADDR = 0x8915  # ioctl(2): the address of an interface


def join(backend: str, timeout_s: int) -> None:
    """Make the default group of all launched processes; does nothing for one that was started alone.

    timeout_s   how long to wait for the others here, and later in each collective
    Raises JobFailed naming what is missing, InputError when the launcher's environment is not whole.
    """
    world = whole_number("WORLD_SIZE", 1)
    if world == 1:
        return
    rank, port = whole_number("RANK"), whole_number("MASTER_PORT")
    host = os.environ.get("MASTER_ADDR", "")
    if not host:
        raise InputError(f"WORLD_SIZE={world} but no MASTER_ADDR in the environment. Start it with a launcher.")
    if whole_number("LOCAL_WORLD_SIZE", world) < world and (interface := _interface_towards(host, port)):
        # Debian gives a machine's own name the address 127.0.1.1, and gloo would offer that one to other machines
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    try:
        store = _store(host, port, rank, world, timeout_s)
        number = _meet(store, rank, world, timeout_s, f"{host}:{port}")
        dist.init_process_group(
            backend,
            store=dist.PrefixStore(f"meeting_{number}", store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=timeout_s),
        )
    except dist.DistError as error:
        raise JobFailed(
            f"rank {rank} of {world} could not meet the others at {host}:{port}: {_first_words(error)}. Does another "
            "program use this port, or did rank 0 say anything?"
        ) from error


def lost(error: RuntimeError) -> str:
    """What to say when `error` is of the exchange between processes; "" when it is about something else.

    gloo tells of others only. nccl's errors, and those of the store, may be of a rank that is gone or of this GPU.
    """
    if not (isinstance(error, dist.DistError) or _is_of_gloo(error)):
        return ""
    who = f"rank {os.environ.get('RANK', 0)} of {os.environ.get('WORLD_SIZE', 1)}"
    if _MESH in str(error):
        return (
            f"{who} met the others, but they cannot reach each other ({_first_words(error)}). Name the network between "
            "the machines: GLOO_SOCKET_IFNAME=eth0, NCCL_SOCKET_IFNAME=eth0 (ip -br addr lists them)."
        )
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if _PACKAGE in Path(frame.filename).parents]
    where = f" in `{ours[-1].line.split('  #')[0]}` ({Path(ours[-1].filename).name}:{ours[-1].lineno})" if ours else ""
    if not _is_of_gloo(error):
        return (
            f"{who} could not exchange with the others{where}: {_first_words(error)}. Either one of them is gone or "
            "silent, or this process's own GPU or network failed: NCCL_DEBUG=WARN says which."
        )
    return (
        f"{who} waited for the others{where}, and one of them is gone or silent: {_first_words(error)}. If it said "
        "nothing itself, it was killed, or its machine or the network between them failed."
    )


def refuse_differences(seen: dict[str, Any]) -> None:
    """All processes call it with what they must agree on, by its name. Raises InputError, on all of them alike."""
    everywhere = gather_object([(socket.gethostname(), seen)])
    for rank, (machine, there) in enumerate(everywhere):
        for key, value in everywhere[0][1].items():
            if there[key] != value:
                raise InputError(
                    f"{key} is {there[key]} for rank {rank} ({machine}) but {value} for rank 0 ({everywhere[0][0]}). "
                    "Give every machine the same arguments, the same store, and one run folder that all of them see."
                )


def _store(host: str, port: int, rank: int, world: int, timeout_s: int) -> dist.Store:
    """The launcher's own store where it has one (torchrun, accelerate), else one that rank 0 serves."""
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not serves:  # TCPStore itself waits, too, but prints a page of C++ frames when it has waited in vain
        _wait_for_port(host, port, rank, world, timeout_s)
    return dist.TCPStore(
        host, port, world, serves, timedelta(seconds=timeout_s), wait_for_workers=False, multi_tenant=True
    )


def _wait_for_port(host: str, port: int, rank: int, world: int, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(_LOOK_S)
                continue
            raise JobFailed(
                f"rank {rank} of {world} found nobody at {host}:{port} within train.timeout_s={timeout_s:g} ({error}). "
                "Was rank 0 started, with this address and port? Between machines: is the port open?"
            ) from error


def _meet(store: dist.Store, rank: int, world: int, timeout_s: float, place: str) -> int:
    """Wait until all ranks are there; returns the number of their meeting.

    Rank 0 opens one each time it is started. A rank does not enter a meeting where its predecessor (killed, then
    started again) has signed: it waits for the next one.
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
        time.sleep(_LOOK_S)
    came = [other for other in everyone if store.check([f"{number}/{other}"])]
    there = {other: store.get(f"{number}/{other}").decode().split()[0] for other in came}
    raise JobFailed(missing(there | {rank: socket.gethostname()}, world, place, timeout_s))


def missing(there: dict[int, str], world: int, place: str, timeout_s: float) -> str:
    """there: {rank: its machine} of those who came."""
    machines: dict[str, list[int]] = {}
    for rank, machine in there.items():
        machines.setdefault(machine, []).append(rank)
    came = "; ".join(f"{machine}: rank {_listed(ranks)}" for machine, ranks in machines.items())
    absent = [rank for rank in range(world) if rank not in there]
    return (
        f"{len(there)} of {world} processes joined at {place} within train.timeout_s={timeout_s:g} ({came}). Missing: "
        f"rank {_listed(absent)}. Was the launcher started on every machine, and did those processes say anything?"
    )


def _listed(ranks: list[int]) -> str:
    """0, 1, 2, 3, 6 -> 0..3, 6"""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    return ", ".join(f"{run[0]}..{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)


def _is_of_gloo(error: RuntimeError) -> bool:
    return any(text in str(error) for text in _OF_GLOO)


def _first_words(error: RuntimeError) -> str:
    """Without the place in gloo's source before it and its advice after it; nccl's cause stands in its last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    words = lines[0].split("] ", 1)[-1].split(". This is", 1)[0].strip().rstrip(".")
    return f"{words} ({lines[-1].strip()})" if "Last error:" in lines[:-1] else words


def _interface_towards(host: str, port: int) -> str | None:
    """The network interface by which this machine reaches `host`; None for loopback, or where it is not told."""
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
    except OSError:  # unknown host, or no route: the store says so
        return None
    return None
