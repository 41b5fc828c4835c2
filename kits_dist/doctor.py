"""What this machine can do, and what to set: `python -m kits_dist.doctor [store=DIR] [run=DIR]`.

One line a topic: ok, warn or fail, what was found, how to mend it. Exit code 1 when something fails. Uses no network.
"""

import os
import platform
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from kits_dist import cli
from kits_dist.config import ModelConfig
from kits_dist.data.store import Store, array_path
from kits_dist.diagnostics import look_devices, look_host
from kits_dist.diagnostics.facts import Check, Disk, Facts, StoreFacts
from kits_dist.diagnostics.host import launch_command
from kits_dist.diagnostics.verdict import judge
from kits_dist.utils.errors import InputError, JobFailed

WIDTH = 100


@dataclass(frozen=True)
class Args:
    store: str = ""
    """Slice store to look at: does it fit the memory, how fast does its disk read."""
    run: str = ""
    """Folder of a run to come, there already or not: is there room, how fast is its disk."""


def main(args: Args) -> None:
    store = Store(args.store, key="store") if args.store else None
    run = _existing(args.run) if args.run else None
    facts = gather(store, run)
    checks = judge(facts)
    for check in checks:
        print(shown(check))
    print(f"\nto train:\n{launch_command(facts, args.store or 'DIR', args.run or 'DIR')}", flush=True)
    if failed := [check.topic for check in checks if check.level == "fail"]:
        raise JobFailed(f"{len(failed)} of {len(checks)} checks failed: {', '.join(failed)}. Mend them first.")


def gather(store: Store | None, run: Path | None) -> Facts:
    """Look at everything, a few seconds; `run` is a folder that exists."""
    found = look_devices.torch_facts() | look_devices.driver_facts()
    found |= look_devices.dali_facts(on_gpu=bool(found.get("gpus")))
    found |= look_host.core_facts() | look_host.memory_facts() | look_host.shm_facts() | look_host.port_facts()
    found |= look_host.launcher_config()
    if store:
        arrays = [
            array_path(store.path, "axial", case.case_id, kind) for case in store.cases for kind in ("image", "label")
        ]
        gb = sum(entry["bytes"] for entry in store.meta["files"].values()) / 1e9
        slices = sum(case.shape[0] for case in store.cases)
        found["store"] = StoreFacts(len(store.cases), slices, gb, store.meta["data"])
        found["store_disk"] = Disk(shutil.disk_usage(store.path).free / 1e9, *look_host.read_speed(arrays))
    if run:
        found["run_disk"] = look_host.disk_speed(run)
    encoder = ModelConfig().encoder
    return Facts(
        system=platform.system(),
        python=sys.version_info[:3],
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        accelerate=look_devices.installed("accelerate") or "",
        encoder=encoder,
        encoder_cached=look_host.encoder_cached(encoder),
        **found,
    )


def shown(check: Check) -> str:
    """`ok    topic      what was found`, wrapped; a fix that does not fit stands below, in one piece to copy."""
    hang = " " * 17
    text = f"{check.level:<4}  {check.topic:<9}  {check.found}"
    text = textwrap.fill(text, WIDTH, subsequent_indent=hang, break_long_words=False, break_on_hyphens=False)
    if not check.fix:
        return text
    if "\n" not in check.fix and len(text.splitlines()[-1]) + len(check.fix) + 5 <= WIDTH:
        return f"{text}  -> {check.fix}"
    return f"{text}\n{hang}-> " + check.fix.replace("\n", f"\n{hang}   ")


def _existing(run: str) -> Path:
    """The folder, or the nearest one above it that is there. Raises InputError for a file."""
    there = next((path for path in (Path(run), *Path(run).parents) if path.exists()), None)
    if there is None or not there.is_dir():
        raise InputError(f"run={run}: {there or 'its drive'} is no folder. Name another one.")
    return there


if __name__ == "__main__":
    cli.run(main, Args)
