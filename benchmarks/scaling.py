"""How much faster are N processes than one, and how much of a step is communication? `python -m benchmarks.scaling`.

One launch of `accelerate launch` with N processes (one per GPU, or sharing the cores: gloo), in which 1, 2, 4 .. N of
them train while the others wait, window by window in turns. Weak: each process keeps its batch. Strong: the global
batch is kept and divided. Each also runs without exchanging gradients (`no_sync`): the difference is the communication,
what remains is the machine (memory, clocks, power). Other ways to exchange gradients (size of the buckets, bfloat16, a
static graph) take their turns too, weak, on all N, and are compared with the default one. One batch is repeated, so
that no loader is involved.
"""

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.lib import programs
from benchmarks.lib.arguments import StepArgs
from benchmarks.lib.harness import pick_device
from benchmarks.lib.lines import Baseline, Recorder, median, no_ceiling, rounds
from benchmarks.lib.programs import ROOT
from benchmarks.lib.scaling_rank import EXCHANGES
from benchmarks.lib.stores import plain
from kits_dist import cli
from kits_dist.utils.errors import InputError
from kits_dist.utils.limits import available_cores

LIMIT_S = 1200


@dataclass(frozen=True)
class Args(StepArgs):
    """Arguments of the program; a batch is that of one process."""

    processes: int = 0
    """At most this many; 0: one per GPU, else one per core, up to 8."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.processes < 0 or self.processes == 1:
            raise InputError(f"processes={self.processes}: use 2 or more, or 0 for as many as there are.")


def main(args: Args) -> None:
    """Launch the processes, and write the lines of all groups of them."""
    on_gpu = pick_device().type == "cuda"
    available = torch.cuda.device_count() if on_gpu else max(2, available_cores())
    if args.processes > available and on_gpu:
        raise InputError(f"processes={args.processes}: there are {available} GPUs.")
    processes = args.processes or min(available, 2 if args.quick else 8)
    batch_size = args.batch_size or args.default(gpu=128, cpu=8, quick=4)
    size, network, timing = args.image_size(), args.network(), args.timing(warmup_steps=5)
    common = {"device": "cuda" if on_gpu else "cpu", "size_px": list(size), "batch_size": batch_size}
    common |= {"model": plain(network), "backend": "nccl" if on_gpu else "gloo"}
    recorder = Recorder("scaling", args, common, warmup_steps=timing["warmup_steps"])
    if processes < 2:
        failed = {"failed": "there is one GPU here: nothing to scale to"}
        recorder.write("weak", [], no_ceiling("not measured: one process"), failed)
        return

    words = [f"size_px={size[0]}x{size[1]}", f"batch_size={batch_size}"]
    words += [f"arch={network.arch}", f"width={network.width}"]
    found = launch(processes, on_gpu, [*words, *(f"{key}={value}" for key, value in timing.items())])
    groups = found["groups"]
    rates = {name: [group["images"] / s for s in group["seconds"]] for name, group in groups.items()}
    common |= {"precision": found["precision"], "threads": found["threads"]}
    recorder.write("one", rates["one"], no_ceiling("the others are compared with one process"), {"processes": 1})

    for name in (name for name in rates if name.startswith(("weak", "strong")) and not name.endswith("_no_sync")):
        n = groups[name]["processes"]
        n_times_one = [n * rate for rate in rates["one"]]
        share, spread = median([1 - ratio for ratio in rounds(rates[name], rates[f"{name}_no_sync"])])
        machine, _ = median(rounds(rates[f"{name}_no_sync"], n_times_one))
        config = {
            "processes": n,
            "batch_size": groups[name]["batch_size"],
            "communication_share": round(share, 4),
            "communication_spread": [round(value, 4) for value in spread],
            "without_communication": round(machine, 4),
            "gradient_mb": found["gradient_mb"],
        }
        ceiling = Baseline(f"{n} times one process", n_times_one)
        recorder.write(name, rates[name], ceiling, config, answer=n == processes)
        print(f"  {100 * share:.1f} % of the step is communication; without it {machine:.3f} of {n} times one process")

    config = {"processes": processes, "gradient_mb": found["gradient_mb"]}
    for name in EXCHANGES:
        recorder.write(name, rates[name], Baseline(f"weak_{processes}", rates[f"weak_{processes}"]), config)


def launch(processes: int, on_gpu: bool, words: list[str]) -> dict[str, Any]:
    """Return what the ranks measured. Raises JobFailed with their last lines."""
    config = ROOT / "launch" / ("ddp.yaml" if on_gpu else "cpu.yaml")
    launcher = ["accelerate.commands.launch", "--config_file", str(config), "--num_processes", str(processes)]
    rank = [*launcher, "-m", "benchmarks.lib.scaling_rank", *words]
    return programs.result_of(rank, f"{processes} processes", LIMIT_S)


if __name__ == "__main__":
    cli.run(main, Args)
