"""Log a run to TensorBoard and log.jsonl, on rank 0.

TensorBoard shows scalars, the bottleneck hint, validation panels, a page of TEXT on what the run is, and a row of
HPARAMS whose metrics are the tags best/*.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from kits_dist.config import Config, as_plain
from kits_dist.utils import files
from kits_dist.utils.text import utf8

if TYPE_CHECKING:
    from accelerate import Accelerator


class Tracker:
    """Scalars by optimizer step, in RUN/tensorboard and in RUN/log.jsonl with one JSON object per line."""

    def __init__(self, accelerator: "Accelerator", run: Path, step: int = 0):
        """step: where the run starts or resumes. What was logged after it will be logged again, so it is dropped."""
        # "tensorboard" is also the name of the folder below the run
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": step + 1}})
        self._accelerator = accelerator
        self._step = step
        self._is_main = accelerator.is_main_process
        if self._is_main:
            _drop_after(run / "log.jsonl", step)
            self._lines = open(run / "log.jsonl", "a", encoding="utf-8", buffering=1)  # noqa: SIM115  closed in `close`
            self.writer: Any = accelerator.get_tracker("tensorboard", unwrap=True)  # a SummaryWriter
            self._drawing_thread = ThreadPoolExecutor(1)  # one picture at a time
            self._drawn: Future | None = None

    def introduce(self, facts: dict[str, str | int], config: Config) -> None:
        """Write what the run is to TEXT and HPARAMS. facts: what the configuration does not say, on rank 0."""
        if self._is_main:
            from torch.utils.tensorboard.summary import hparams

            self.writer.add_text("run", in_markdown(facts, config), self._step)
            # Without the summary of the experiment: TensorBoard would take that of one run for all runs, and hide the
            # keys and regions that it lacks.
            _, begun, self._done = hparams(facts | flat(config), {})
            self.writer.file_writer.add_summary(begun, self._step)

    def log(self, step: int, values: Mapping[str, float | str]) -> None:
        """Log numbers as scalars and strings as TEXT.

        log.jsonl leaves out what is not finite, such as a gradient that fp16's scaler skips: JSON has no number for it.
        """
        if self._is_main:
            self._accelerator.log(dict(values), step=step)
            line = {"step": step, "time_s": round(time.time(), 3)}
            line |= {name: v for name, v in values.items() if isinstance(v, str) or math.isfinite(v)}
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")

    def image(self, step: int, name: str, draw: Callable[[], np.ndarray]) -> None:
        """Log the picture that `draw` returns, (H, W, 3) uint8. It is drawn, encoded and written in a thread.

        An error there is raised by the next call, or by `close`.
        """
        if self._is_main:
            self._finish_drawing()
            self._drawn = self._drawing_thread.submit(
                lambda: self.writer.add_image(name, draw(), step, dataformats="HWC")
            )

    def _finish_drawing(self) -> None:
        if self._drawn:
            self._drawn.result()

    def close(self, done: bool) -> None:
        """Finish writing. done: nothing is left to train, which HPARAMS calls a success."""
        if self._is_main:
            self._finish_drawing()
            self._drawing_thread.shutdown()
        if self._is_main and done:
            self.writer.file_writer.add_summary(self._done, self._step)
        self._accelerator.end_training()
        if self._is_main:
            self._lines.close()


def flat(config: Config) -> dict[str, float | str]:
    """Return the configuration as HPARAMS takes it, {"optim.lr": 0.001, ...}, without folders and logging."""
    plain = as_plain(config)
    found = {"seed": config.seed}
    for group in ("data", "augment", "model", "optim", "train"):
        found |= {f"{group}.{key}": value for key, value in plain[group].items()}
    del found["data.store"]
    return {key: value if type(value) in (int, float) else _as_text(value) for key, value in found.items()}


def _as_text(value: str | bool | int | float | list | None) -> str:
    """Return a value as text: none, true, 512,512."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return utf8(value) if isinstance(value, str) else str(value).lower()


def in_markdown(facts: dict[str, str | int], config: Config) -> str:
    """Return a table of what the run is, and its configuration as in config.yaml."""
    rows = "".join(f"| {name} | {value} |\n" for name, value in facts.items())
    keys = yaml.safe_dump(as_plain(config), sort_keys=False, default_flow_style=None)
    return f"| this run | |\n|---|---|\n{rows}\n```\n{keys}```"


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`: a killed run may have logged more than it saved, and half a line at the end."""
    if not path.is_file():
        return
    kept = [json.dumps(line) + "\n" for line in log_lines(path) if line["step"] <= step]
    files.write_bytes(path, "".join(kept).encode())


def log_lines(path: Path) -> list[dict]:
    """Return the lines of a log.jsonl, skipping what a killed run left half-written; empty when there is no file."""
    found = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            found.append(line)
    return found
