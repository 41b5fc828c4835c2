"""Measure what matters on a machine with a GPU, in eight minutes: `python -m benchmarks.gpu_suite out=DIR`.

Tests marked gpu (DALI's pixels on GPU and CPU among them); feed, loader, model and end_to_end at 512x512 and 256x256,
batch 128; predict; a short training on phantoms and its Dice on the test cases; then, as far as time allows, the
compiled model, several GPUs, the smaller size and time_to_dice against plain PyTorch and MONAI. Each task is a process
of its own with a time limit; one that fails is noted with its last lines and the next begins. OUT holds results.jsonl,
log.txt and table.txt, written as they come. Without a GPU only quick=true runs: the same tasks, tiny, to prove that the
suite works.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lib.lines import describe, line, no_ceiling, read, to_json
from benchmarks.lib.programs import Runner, Task
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


class Suite(Runner):
    """The tasks, and what is kept of them."""

    def __init__(self, args: Args, work: Path):
        self.args, self.out = args, Path(args.out)
        super().__init__(self.out / "log.txt", work, args.limit_s)
        for name in ("results.jsonl", "table.txt"):
            (self.out / name).write_text("")

    def tasks(self) -> list[Task]:
        """Return the tasks in the order of their worth."""
        quick, work = self.args.quick, self.work
        demo = "configs/demo.yaml" if quick else "configs/demo_gpu.yaml"
        cases, raw_size = (6, "8x64x64") if quick else (24, "32x512x512")
        tiny = ["data.batch_size=4", "data.size_px=64x64", "model.width=4", "optim.epochs=1"] if quick else []

        def bench(name: str, limit_s: float, *words: str) -> Task:
            asked = [f"benchmarks.{name.split()[0]}", f"out={self.lines_folder}", *words]
            return Task(name, [*asked, "quick=true"] if quick else asked, limit_s)

        def phantoms(name: str, count: int, size: str) -> list[Task]:
            raw, store = work / f"{name}_raw", work / name
            return [
                Task(f"phantoms {name}", ["kits_dist.phantom", f"output={raw}", f"cases={count}", f"size={size}"], 60),
                Task(f"prepare {name}", ["kits_dist.prepare", f"source={raw}", f"store={store}"], 60),
            ]

        bench_store = f"store={work / 'bench'}"
        if quick:
            measured = [bench("feed", 100, bench_store), bench("loader", 150, bench_store), bench("model", 150)]
            measured += [bench("end_to_end", 150, bench_store), bench("predict", 100)]
            if_time_is_left = []
        else:
            big, small = "size_px=512x512", "size_px=256x256"
            usual = "train_tf32,train_bf16,train_bf16_channels_last,infer_bf16_channels_last"
            trained = "train_bf16_channels_last"
            last = f"{trained},{trained}_unfused,{trained}_compile"
            measured = [
                bench("feed", 35, bench_store, "window_s=0.5"),
                bench("loader 512", 70, bench_store, big, "window_s=0.7"),
                bench("model 512", 90, big, f"variants=[{usual}]", "window_s=1"),
                bench("end_to_end 512", 65, bench_store, big, "windows=5", "window_s=1.5"),
                bench("end_to_end 256", 55, bench_store, small, "windows=5", "window_s=1.5"),
                bench("predict", 45, "window_s=1"),
            ]
            if_time_is_left = [
                bench("model compile", 100, f"variants=[{last}]", "window_s=1"),
                *([bench("scaling", 90, "window_s=1")] if torch.cuda.device_count() > 1 else []),
                bench("loader 256", 40, bench_store, small, "devices=[cuda]", "window_s=0.7"),
                bench("model 256", 60, small, f"variants=[{usual}]", "window_s=0.7"),
                bench("time_to_dice", 150, f"store={work / 'demo'}", "seeds=1"),
            ]
        launcher = ["accelerate.commands.launch", "--config_file", "launch/single.yaml", "-m", "kits_dist.train"]
        run, demo_store = work / "run", work / ("bench" if quick else "demo")
        train = [*launcher, f"config={demo}", f"data.store={demo_store}", f"run={run}", *tiny]
        evaluate = ["kits_dist.evaluate", f"run={run}", "split=test"]
        return [
            Task("pytest -m gpu", ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"], 75),
            *phantoms("bench", cases, raw_size),
            *measured,
            *([] if quick else phantoms("demo", 60, "64x256x256")),
            Task("train", train, 110, reserved=True, after=self._keep_training),
            Task("evaluate", evaluate, 35, reserved=True, after=self._keep_dice),
            *if_time_is_left,
        ]

    def run(self, task: Task, reserved_s: float = 0) -> None:
        """Run a task, and keep its lines."""
        super().run(task, reserved_s)
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
