"""What a run says while it runs (TensorBoard and log.jsonl, rank 0), and how fast it goes, read at log steps only.

TensorBoard gets scalars and the verdict (`log`), pictures (`image`), and what the run is (`introduce`): a page of TEXT,
and a row of HPARAMS, whose metrics are the tags best/*.
"""

import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import yaml
from accelerate import Accelerator

from kits_dist import files
from kits_dist.config import Config, DataConfig, as_plain


class Tracker:
    """Scalars by optimiser step to TensorBoard (RUN/tensorboard) and to RUN/log.jsonl, one JSON object a line."""

    def __init__(self, accelerator: Accelerator, run: Path, step: int = 0):
        """step: where the run goes on; what was logged after it comes again, so it is dropped from both."""
        # a folder of that name in project_dir
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        self._accelerator, self._step = accelerator, step
        self._is_main = accelerator.is_main_process
        if self._is_main:
            _drop_after(run / "log.jsonl", step)
            self._lines = open(run / "log.jsonl", "a", encoding="utf-8", buffering=1)  # closed in `close`
            self.writer = accelerator.get_tracker("tensorboard", unwrap=True)
            self._artist, self._drawn = ThreadPoolExecutor(1), None  # one picture at a time

    def introduce(self, facts: dict[str, str | int], config: Config) -> None:
        """What the run is, for TEXT and HPARAMS. facts: what the configuration does not say; only rank 0's are read."""
        if self._is_main:
            from torch.utils.tensorboard.summary import hparams

            self.writer.add_text("run", in_markdown(facts, config), self._step)
            # The summary of the experiment is left out: TensorBoard would take one run's for all runs, and hide the
            # keys and regions that this one lacks.
            _, begun, self._done = hparams(facts | flat(config), {})
            self.writer.file_writer.add_summary(begun, self._step)

    def log(self, step: int, values: dict[str, float | str]) -> None:
        """Words become a page of TEXT. JSON has no number for what is not finite (a gradient that fp16's scaler skips):
        log.jsonl leaves it out."""
        if self._is_main:
            self._accelerator.log(values, step=step)
            line = {"step": step, "time_s": round(time.time(), 3)}
            line |= {name: v for name, v in values.items() if isinstance(v, str) or math.isfinite(v)}
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")

    def image(self, step: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """draw() -> (H, W, 3) uint8 is called in a thread: nobody waits for drawing, encoding and writing.

        An error there is raised by the next call, or by `close`.
        """
        if self._is_main:
            self._finish_drawing()
            self._drawn = self._artist.submit(lambda: self.writer.add_image(name, draw(), step, dataformats="HWC"))

    def _finish_drawing(self) -> None:
        if self._drawn:
            self._drawn.result()

    def close(self, done: bool) -> None:
        """done: nothing is left to train, HPARAMS calls it a success."""
        if self._is_main:
            self._finish_drawing()
            self._artist.shutdown()
        if self._is_main and done:
            self.writer.file_writer.add_summary(self._done, self._step)
        self._accelerator.end_training()
        if self._is_main:
            self._lines.close()


def flat(config: Config) -> dict[str, float | str]:
    """The configuration as HPARAMS takes it, {"optim.lr": 0.001, ...}; folders and logging are left out."""
    plain = as_plain(config)
    found = {"seed": config.seed}
    for group in ("data", "augment", "model", "optim", "train"):
        found |= {f"{group}.{key}": value for key, value in plain[group].items()}
    del found["data.store"]
    return {key: value if type(value) in (int, float) else _in_a_word(value) for key, value in found.items()}


def _in_a_word(value: str | bool | list | None) -> str:
    """none, true, 512,512; a name as it is."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value if isinstance(value, str) else str(value).lower()


def in_markdown(facts: dict[str, str | int], config: Config) -> str:
    """A table of what the run is, and the configuration as its config.yaml has it."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    keys = yaml.safe_dump(as_plain(config), sort_keys=False, default_flow_style=None)
    return f"| this run | |\n|---|---|\n{rows}\n```\n{keys}```"


def _drop_after(path: Path, step: int) -> None:
    """Keep the whole lines up to `step`: a killed run may have logged more than it saved, and half a line."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in log_lines(path) if line["step"] <= step]
    files.write_bytes(path, "".join(kept).encode())


def log_lines(path: Path) -> list[dict]:
    """The whole lines of a log.jsonl; what a killed run left half-written is passed over, none when it is not there."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found


class Pace:
    """Step times and the share of them spent waiting for data.

    On a GPU: events on the compute stream, read only in `report` (which the caller calls at log steps). The wait is
    the gap on that stream between the end of the work before and the moment the next batch is ready. On a CPU: the
    time blocked in `next`.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._steps: list[tuple] = []  # (step before ended, step ended)
        self._gaps: list[tuple] = []  # (batch requested, batch ready), one or more a step
        self._seconds: list[float] = []  # of steps, read but not yet reported
        self._waits: list[float] = []
        self._epoch = (0.0, 0.0)  # seconds of steps and of waiting since the last verdict
        self._ended = self._now()
        self._requested = self._ended

    def batch_requested(self) -> None:
        self._requested = self._now()

    def batch_ready(self) -> None:
        self._gaps.append((self._requested, self._now()))

    def step_ended(self) -> None:
        ended = self._now()
        self._steps.append((self._ended, ended))
        self._ended = ended

    def resume(self) -> None:
        """Leave out what happened since the last step: validation, saving."""
        self._ended = self._now()

    def report(self, images_per_step: int) -> dict[str, float]:
        """Figures over the steps since the last report, then forgets them; empty when there was none."""
        self._read()
        steps, waited = np.array(self._seconds), sum(self._waits)
        self._seconds, self._waits = [], []
        if not len(steps):
            return {}
        return {
            "perf/images_per_s": images_per_step * len(steps) / steps.sum(),
            "perf/step_ms_p50": float(np.percentile(steps, 50)) * 1e3,
            "perf/step_ms_p99": float(np.percentile(steps, 99)) * 1e3,
            "perf/data_wait": waited / steps.sum(),
        }

    def epoch_wait(self) -> float:
        """Share of the time spent waiting for data since the last call; 0 when there was no step."""
        self._read()
        seconds, waited = self._epoch
        self._epoch = (0.0, 0.0)
        return waited / seconds if seconds else 0.0

    def _read(self) -> None:
        """Marks -> seconds."""
        if self._cuda:
            torch.cuda.synchronize()  # sync
        seconds, waits = ([self._between(*pair) for pair in pairs] for pairs in (self._steps, self._gaps))
        self._steps, self._gaps = [], []
        self._seconds += seconds
        self._waits += waits
        self._epoch = (self._epoch[0] + sum(seconds), self._epoch[1] + sum(waits))
        self._ended = self._now()

    def _now(self):
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, a, b) -> float:
        """Seconds."""
        return a.elapsed_time(b) / 1e3 if self._cuda else b - a


INPUT_BOUND = 0.05  # of a step spent waiting, from which on the data path is worth a word


def verdict(wait: float, data: DataConfig, on_gpu: bool, resident: bool) -> str:
    """A share of waiting in words: which side is slow, and the key to try. resident: slices lie in GPU memory."""
    if wait < INPUT_BOUND:
        return f"compute-bound: data wait {wait:.1%}".replace("%", " %")
    if not on_gpu:
        tip = "data.backend=opencv" if data.backend == "dali" else "a smaller data.size_px, or more CPU cores"
    elif data.backend == "opencv":
        tip = "data.backend=dali"
    elif resident:
        tip = "more CPU cores per process"
    elif data.residency == "auto":
        tip = "a smaller data.batch_size, beside which the slices fit in GPU memory"
    else:
        tip = "data.residency=gpu"
    return f"input-bound {wait:.0%}: try {tip}".replace("%", " %")
