"""How much faster are N processes than one, and how much of a step is communication? `python -m benchmarks.scaling`.

One launch of `accelerate launch` with N processes (one a GPU, or sharing the cores: gloo), in which 1, 2, 4 .. N of
them train while the others wait, interleaved window by window. Weak: each process keeps its batch. Strong: the global
batch stays and is divided. Each also runs without exchanging gradients (`no_sync`): the difference is the
communication, what remains is the machine (memory, clocks, power). Other ways to exchange gradients (size of the
buckets, bfloat16, a static graph, copies instead of views) take their turns too, weak, on all N, and are compared with
the default way. One batch repeated, so that no loader is in it.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.lib.harness import Ceiling, line, median, pick_device, plain, record, rounds
from benchmarks.lib.scaling_rank import EXCHANGES, network_of
from kits_dist import cli
from kits_dist.utils.errors import InputError, JobFailed
from kits_dist.utils.parallel import available_cores

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 1200


@dataclass(frozen=True)
class Args:
    processes: int = 0
    """At most; 0: one a GPU, else one a core, up to 8."""
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the images; 0x0: 512x512 on a GPU, 128x128 without."""
    batch_size: int = 0
    """Images of one process; 0: 128 on a GPU, 8 without."""
    windows: int = 5
    """Timed windows a variant, at least 5."""
    window_s: float = 2.0
    """Seconds a window, roughly."""
    out: str = ""
    """Folder for the line; empty: benchmarks/results."""
    quick: bool = False
    """A few steps on tiny images: proves that it runs."""

    def __post_init__(self) -> None:
        if self.processes < 0 or self.processes == 1:
            raise InputError(f"processes={self.processes}: use 2 or more, or 0 for as many as there are.")


def main(args: Args) -> None:
    device = pick_device()
    on_gpu = device.type == "cuda"
    there = torch.cuda.device_count() if on_gpu else max(2, available_cores())
    if args.processes > there and on_gpu:
        raise InputError(f"processes={args.processes}: there are {there} GPUs.")
    processes = args.processes or min(there, 2 if args.quick else 8)
    size = args.size_px if all(args.size_px) else (64, 64) if args.quick else (512, 512) if on_gpu else (128, 128)
    batch_size = args.batch_size or (4 if args.quick else 128 if on_gpu else 8)
    warmup_steps, window_s = (1, 0.0) if args.quick else (5, args.window_s)
    network = network_of(on_gpu and not args.quick)
    common = {
        "device": device.type,
        "size_px": list(size),
        "batch_size": batch_size,
        "model": plain(network),
        "backend": "nccl" if on_gpu else "gloo",
    }

    def one(name: str, values: list[float], ceiling: Ceiling, **more: Any) -> None:
        answer, ratio = name == f"weak_{processes}" or name == f"strong_{processes}", more.pop("ratio", None)
        config = {"variant": name, **common, **more}
        done = line(
            "scaling", values, "images/s", ceiling, config, args, warmup_steps=warmup_steps, ratio=ratio, answer=answer
        )
        record(done, args.out)

    if processes < 2:
        none = Ceiling("N times one process", None, "not measured: one process")
        one("weak", [], none, failed="there is one GPU here: nothing to scale to")
        return
    words = [f"size_px={size[0]}x{size[1]}", f"batch_size={batch_size}", f"windows={args.windows}"]
    words += [f"window_s={window_s}", f"warmup_steps={warmup_steps}", f"tiny={str(args.quick).lower()}"]
    found = launch(processes, on_gpu, words)
    rates = {
        name: [images / s for s in one["seconds"]] for name, one in found["ways"].items() if (images := one["images"])
    }
    common |= {"precision": found["precision"], "threads": found["threads"]}
    alone = Ceiling("none", None, "one process is what the others are compared with")
    one("one", rates["one"], alone, processes=1)
    for name in (name for name in rates if name not in ("one", *EXCHANGES) and not name.endswith("_no_sync")):
        n = found["ways"][name]["processes"]
        quiet = rates[f"{name}_no_sync"]
        shares = [1 - ratio for ratio in rounds(rates[name], quiet)]
        machine = rounds(quiet, [n * rate for rate in rates["one"]])
        ratio = median(rounds(rates[name], [n * rate for rate in rates["one"]]))[0]
        one(
            name,
            rates[name],
            Ceiling(f"{n} times one process", n * median(rates["one"])[0]),
            processes=n,
            batch_size=found["ways"][name]["batch_size"],
            communication_share=round(median(shares)[0], 4),
            communication_spread=[round(share, 4) for share in median(shares)[1]],
            without_communication=round(median(machine)[0], 4),
            gradient_mb=found["gradient_mb"],
            ratio=ratio,
        )
        print(
            f"  {100 * median(shares)[0]:.1f} % of the step is communication; without it {median(machine)[0]:.3f} of "
            f"{n} times one process"
        )
    default = rates[f"weak_{processes}"]
    for name in EXCHANGES:
        ratio, spread = median(rounds(rates[name], default))
        one(
            name,
            rates[name],
            Ceiling(f"weak_{processes}", median(default)[0]),
            processes=processes,
            gradient_mb=found["gradient_mb"],
            ratio=ratio,
            ratio_spread=[round(one_round, 4) for one_round in spread],
        )


def launch(processes: int, on_gpu: bool, words: list[str]) -> dict[str, Any]:
    """What the ranks measured. Raises JobFailed with their last words."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        config = ROOT / "launch" / ("ddp.yaml" if on_gpu else "cpu.yaml")
        launcher = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", str(processes)]
        command = [sys.executable, "-m", *launcher, "-m", "benchmarks.lib.scaling_rank", f"result={result}", *words]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise JobFailed(f"{processes} processes did not end in {LIMIT_S} s.") from error
        if done.returncode or not result.is_file():
            raise JobFailed(f"{processes} processes failed:\n" + "\n".join(done.stderr.strip().splitlines()[-15:]))
        return json.loads(result.read_text())


if __name__ == "__main__":
    cli.run(main, Args)
