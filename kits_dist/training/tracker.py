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
import yaml
from accelerate import Accelerator

from kits_dist.config import Config, as_plain
from kits_dist.utils import files


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
