"""Measure what matters on a machine with a GPU, in eight minutes: `python -m benchmarks.gpu_suite out=DIR`.

Tests marked gpu (DALI's pixels on GPU and CPU among them); end_to_end at 512x512 and 256x256 and model, batch 128; a
short training on phantoms and its Dice on the test cases; then, as far as time allows, feed, loader, predict, the
compiled model and several GPUs. Each task is a process of its own with a time limit, and time is kept for end_to_end
and the training; a task that fails is noted with its last lines and the next begins, one whose input is missing is left
out. OUT holds results.jsonl, log.txt and table.txt, written as they come. Without a GPU only quick=true runs: the same
tasks, tiny, to prove that the suite works.
"""

import dataclasses
import json
import math
import re
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lib.lines import describe, line, no_ceiling, read, to_json
from benchmarks.lib.programs import ROOT, Runner, Task
from benchmarks.lib.tables import table
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    """Arguments of the program."""

    out: str = MISSING
    """Folder for results.jsonl, log.txt, table.txt, train_log.jsonl and panel.png."""
    limit_s: float = 470.0
    """Seconds for everything; tasks that no longer fit are noted as left out."""
    quick: bool = False
    """The same tasks, tiny; also without a GPU."""


def main(args: Args) -> None:
    """Run all tasks."""
    if not torch.cuda.is_available() and not args.quick:
        raise InputError("there is no NVIDIA GPU here. With quick=true the same tasks run tiny on the CPU.")
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(args, Path(folder))
        suite.run_all(suite.tasks())
        suite.write_table()


def gpu_tests() -> list[Path]:
    """Return the test files that hold a test marked gpu, so that the others need not be collected."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path.relative_to(ROOT) for path in files if re.search(r"\bmark\.gpu\b", path.read_text(encoding="utf-8"))]


class Suite(Runner):
    """The tasks, and what is kept of them."""

    def __init__(self, args: Args, work: Path):
        self.args, self.out = args, Path(args.out)
        super().__init__(self.out / "log.txt", work, args.limit_s)
        for name in ("results.jsonl", "table.txt"):
            (self.out / name).write_text("")

    def tasks(self) -> list[Task]:
        """Return the tasks in the order of their worth. All up to the last kept one fit into the default limit."""
        quick, work = self.args.quick, self.work
        cases, raw_size = (6, "8x64x64") if quick else (24, "32x512x512")
        store, run = work / "bench", work / "run"
        demo_store = store if quick else work / "demo"
        demo = "configs/demo.yaml" if quick else "configs/demo_gpu.yaml"
        tiny = ["data.batch_size=4", "data.size_px=64x64", "model.width=4", "optim.epochs=1"] if quick else []

        def bench(name: str, limit_s: float, *words: str, reads_store: bool = False, kept: bool = False) -> Task:
            asked = [f"benchmarks.{name.split()[0]}", f"out={self.lines_folder}"]
            asked += ["quick=true"] if quick else words
            if reads_store:
                asked.append(f"store={store}")
            if quick:
                limit_s *= 3  # the limits are those of a machine with a GPU
            return Task(name, asked, limit_s, kept, store / "store.json" if reads_store else None)

        def phantoms(store: Path, count: int, size: str) -> list[Task]:
            name, raw = store.name, work / f"{store.name}_raw"
            make = ["kits_dist.phantom", f"output={raw}", f"cases={count}", f"size={size}"]
            prepare = ["kits_dist.prepare", f"source={raw}", f"store={store}"]
            return [
                Task(f"phantoms {name}", make, 20, kept=True),
                Task(f"prepare {name}", prepare, 15, kept=True, needs=raw),
            ]

        launcher = ["accelerate.commands.launch", "--config_file", "launch/single.yaml", "-m", "kits_dist.train"]
        train = [*launcher, f"config={demo}", f"data.store={demo_store}", f"run={run}", *tiny]
        evaluate = ["kits_dist.evaluate", f"run={run}", "split=test"]
        pytest = ["pytest", "-q", "-m", "gpu and not slow", "-p", "no:cacheprovider", *map(str, gpu_tests())]
        big, small, windows = "size_px=512x512", "size_px=256x256", "windows=5"
        trained = "train_bf16_channels_last"
        usual = f"train_tf32,train_bf16,{trained},train_fp16_channels_last,infer_bf16_channels_last"
        end_to_end_256 = bench("end_to_end 256", 50, small, windows, "window_s=1", reads_store=True, kept=True)
        compiled = bench("model compile", 100, f"variants=[{trained},{trained}_compile]", "window_s=1")
        return [
            Task("imports", ["kits_dist.train", "help"], 30),
            Task("pytest -m gpu", pytest, 60),
            *phantoms(store, cases, raw_size),
            bench("end_to_end 512", 65, big, windows, "window_s=1.2", reads_store=True, kept=True),
            *([] if quick else [end_to_end_256]),
            bench("model 512", 80, big, f"variants=[{usual}]", "window_s=0.7"),
            *([] if quick else phantoms(demo_store, 60, "64x256x256")),
            Task("train", train, 85, kept=True, needs=demo_store / "store.json", after=self._keep_training),
            Task("evaluate", evaluate, 25, kept=True, needs=run / "model.safetensors", after=self._keep_dice),
            bench("feed", 35, "window_s=0.5", reads_store=True),
            bench("loader", 60, big, "devices=[cuda]", "window_s=0.7", reads_store=True),
            bench("predict", 45, "window_s=0.7"),
            *([] if quick else [compiled]),
            *([bench("scaling", 90, "window_s=1")] if torch.cuda.device_count() > 1 else []),
        ]

    def run(self, task: Task, until_s: float = math.inf) -> None:
        """Run a task, and keep its lines."""
        super().run(task, until_s)
        self.take_lines(lambda name: self.out / "results.jsonl")

    def note(self, text: str) -> None:
        """Keep a note also in table.txt, in case that the suite is stopped."""
        super().note(text)
        (self.out / "table.txt").write_text("\n".join(self.notes) + "\n", encoding="utf-8")

    def _keep_training(self) -> None:
        if (log := self.work / "run" / "log.jsonl").is_file():
            shutil.copy(log, self.out / "train_log.jsonl")

    def _keep_dice(self) -> None:
        """Write the summary of the evaluation as lines, and keep its picture."""
        folder = self.work / "run" / "evaluation" / "test"
        if not (folder / "summary.json").is_file():
            return
        if (folder / "panel.png").is_file():
            shutil.copy(folder / "panel.png", self.out / "panel.png")
        summary = json.loads((folder / "summary.json").read_text())
        ceiling = no_ceiling("phantoms have no published score; this one says that training works, not how on KiTS")
        about = {"data": summary["data"], "cases": summary["cases"], "spread_is": "95 % interval over cases"}
        with open(self.out / "results.jsonl", "a", encoding="utf-8") as file:
            for name, row in summary["regions"].items():
                config, unit = {"variant": name, **about}, "Dice, mean over test cases"
                done = line("phantom_dice", [row["dice"]], unit, ceiling, config, self.args, answer=True)
                done = dataclasses.replace(done, spread=tuple(row["dice_ci95"]), windows=summary["cases"])
                file.write(json.dumps(to_json(done), allow_nan=False) + "\n")

    def write_table(self) -> None:
        """Write everything on one page, last on the screen and in OUT/table.txt."""
        lines = read(self.out / "results.jsonl")
        took_s = time.monotonic() - self.begin
        parts = ["== every value", *map(describe, lines), ""]
        parts += ["== as a table" + (" (quick: none of it is a measurement)" if self.args.quick else ""), table(lines)]
        parts += ["", f"== tasks, {took_s:.0f} s in total", *self.notes]
        text = "\n".join(parts)
        (self.out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    cli.run(main, Args)
