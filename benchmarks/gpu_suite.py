"""All that a machine with a GPU should answer, in eight minutes: `python -m benchmarks.gpu_suite out=DIR`.

Tests marked gpu; agreement of DALI on GPU and CPU; feed, loader, model and end_to_end at 512x512 and 256x256, batch
128; predict; a short training on phantoms and its Dice on the test cases; then, as far as the time goes, the compiled
model, several GPUs, the smaller size and the race against plain PyTorch and MONAI. Each step is a process of its own
with a time limit; one that fails is noted with its last words and the next begins. OUT holds results.jsonl, log.txt and
table.txt, written as they come. Without a GPU only quick=true runs: the same steps, tiny, so that any machine proves
that the suite works.
"""

import dataclasses
import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.lib.lines import Ceiling, in_words, line, read, to_json
from benchmarks.lib.steps import Runner, Task
from benchmarks.report import table
from kits_dist import cli
from kits_dist.cli import MISSING
from kits_dist.utils.errors import InputError


@dataclass(frozen=True)
class Args:
    out: str = MISSING
    """Folder for results.jsonl, log.txt, table.txt, train_log.jsonl and panel.png."""
    limit_s: float = 470.0
    """Seconds for everything; steps that no longer fit are noted as left out."""
    quick: bool = False
    """The same steps, tiny; also without a GPU."""


def main(args: Args) -> None:
    if not torch.cuda.is_available() and not args.quick:
        raise InputError("there is no NVIDIA GPU here. With quick=true the same steps run tiny on the CPU.")
    with tempfile.TemporaryDirectory() as folder:
        suite = Suite(args, Path(folder))
        suite.run_all(suite.tasks())
        suite.write_table()


class Suite(Runner):
    def __init__(self, args: Args, work: Path):
        self.args, self.out = args, Path(args.out)
        super().__init__(self.out / "log.txt", work, args.limit_s)
        for name in ("results.jsonl", "table.txt"):
            (self.out / name).write_text("")

    def tasks(self) -> list[Task]:
        quick, work = self.args.quick, self.work
        demo = "configs/demo.yaml" if quick else "configs/demo_gpu.yaml"
        cases, raw_size = (6, "8x64x64") if quick else (24, "32x512x512")
        tiny = ["data.batch_size=4", "data.size_px=64x64", "model.width=4", "optim.epochs=1"] if quick else []

        def bench(name: str, limit_s: float, *words: str) -> Task:
            asked = [f"benchmarks.{name.split()[0]}", f"out={work / 'lines'}", *words]
            return Task(name, [*asked, "quick=true"] if quick else asked, limit_s)

        def phantoms(name: str, count: int, size: str) -> list[Task]:
            raw, store = work / f"{name}_raw", work / name
            return [
                Task(f"phantoms {name}", ["kits_dist.phantom", f"output={raw}", f"cases={count}", f"size={size}"], 60),
                Task(f"prepare {name}", ["kits_dist.prepare", f"source={raw}", f"store={store}"], 60),
            ]

        bench_store = f"store={work / 'bench'}"
        if quick:
            measured, where_time_is_left = [bench("feed", 100, bench_store), bench("loader", 150, bench_store)], []
            measured += [bench("model", 150), bench("end_to_end", 150, bench_store), bench("predict", 100)]
        else:
            big, small = "size_px=512x512", "size_px=256x256"
            some = "variants=[train_tf32,train_bf16,train_bf16_channels_last,infer_bf16_channels_last]"
            last = (
                "variants=[train_bf16_channels_last,train_bf16_channels_last_unfused,train_bf16_channels_last_compile]"
            )
            measured = [
                bench("feed", 35, bench_store, "window_s=0.5"),
                bench("loader 512", 70, bench_store, big, "window_s=0.7"),
                bench("model 512", 90, big, some, "window_s=1"),
                bench("end_to_end 512", 65, bench_store, big, "windows=5", "window_s=1.5"),
                bench("end_to_end 256", 55, bench_store, small, "windows=5", "window_s=1.5"),
                bench("predict", 45, "window_s=1"),
            ]
            where_time_is_left = [
                bench("model compile", 100, last, "window_s=1"),
                *([bench("scaling", 90, "window_s=1")] if torch.cuda.device_count() > 1 else []),
                bench("loader 256", 40, bench_store, small, "devices=[cuda]", "window_s=0.7"),
                bench("model 256", 60, small, some, "window_s=0.7"),
                bench("time_to_dice", 150, f"store={work / 'demo'}", "seeds=1"),
            ]
        launcher = ["accelerate.commands.launch", "--config_file", "launch/single.yaml", "-m", "kits_dist.train"]
        run, demo_store = work / "run", work / ("bench" if quick else "demo")
        train = [*launcher, f"config={demo}", f"data.store={demo_store}", f"run={run}", *tiny]
        return [
            Task("pytest -m gpu", ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"], 75),
            *phantoms("bench", cases, raw_size),
            bench("agreement", 60, bench_store),
            *measured,
            *([] if quick else phantoms("demo", 60, "64x256x256")),
            Task("train", train, 110, kept=True, after=self._keep_training),
            Task("evaluate", ["kits_dist.evaluate", f"run={run}", "split=test"], 35, kept=True, after=self._keep_dice),
            *where_time_is_left,
        ]

    def run(self, task: Task, set_aside_s: float = 0) -> None:
        super().run(task, set_aside_s)
        self._merge()

    def note(self, words: str) -> None:
        super().note(words)
        (self.out / "table.txt").write_text("\n".join(self.notes) + "\n", encoding="utf-8")

    def _merge(self) -> None:
        """Lines of the benchmark that just ran -> OUT/results.jsonl."""
        for path in sorted((self.work / "lines").glob("*.jsonl")):
            with open(self.out / "results.jsonl", "a", encoding="utf-8") as file:
                file.write(path.read_text(encoding="utf-8"))
            path.unlink()

    def _keep_training(self) -> None:
        if (log := self.work / "run" / "log.jsonl").is_file():
            shutil.copy(log, self.out / "train_log.jsonl")

    def _keep_dice(self) -> None:
        """The table of the evaluation as lines, and its picture."""
        folder = self.work / "run" / "evaluation" / "test"
        if not (folder / "summary.json").is_file():
            return
        if (folder / "panel.png").is_file():
            shutil.copy(folder / "panel.png", self.out / "panel.png")
        summary = json.loads((folder / "summary.json").read_text())
        why = Ceiling("none", None, "phantoms have no published figure; the score says that training works, not KiTS")
        with open(self.out / "results.jsonl", "a", encoding="utf-8") as file:
            for name, row in summary["regions"].items():
                config = {"variant": name, "data": summary["data"], "cases": summary["cases"]}
                done = line(
                    "phantom_dice", [row["dice"]], "Dice, mean over test cases", why, config, self.args, answer=True
                )
                done = dataclasses.replace(done, spread=tuple(row["dice_ci95"]), windows=summary["cases"])
                config["spread_is"] = "95 % interval over cases"
                file.write(json.dumps(to_json(done), allow_nan=False) + "\n")

    def write_table(self) -> None:
        """Everything on one page, last on the screen and in OUT/table.txt."""
        lines = read(self.out / "results.jsonl")
        took = time.monotonic() - self.begin
        text = "\n".join(
            [
                "== every figure",
                *(in_words(one) for one in lines),
                "",
                "== as a table" + (" (quick: none of it is a measurement)" if self.args.quick else ""),
                table(lines),
                "",
                f"== steps, {took:.0f} s in all",
                *self.notes,
            ]
        )
        (self.out / "table.txt").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}", flush=True)


if __name__ == "__main__":
    cli.run(main, Args)
