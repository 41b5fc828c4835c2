"""Programs one after another, each a process of its own with a time limit: one that fails is noted, the next begins."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 25


class Task(NamedTuple):
    name: str
    words: list[str]  # what follows `python -m`
    limit_s: float
    kept: bool = False  # its time is set aside: earlier tasks may not use it up
    after: Callable[[], None] | None = None  # collects what it made


class Runner:
    """Runs tasks within `limit_s` seconds in all. `notes` holds a line a task; what they say goes to `log`."""

    def __init__(self, log: Path, work: Path, limit_s: float):
        """work: a folder whose name no log shows."""
        self.log, self.work, self.limit_s = log, work, limit_s
        self.begin = time.monotonic()
        self.notes: list[str] = []
        self.failed: list[str] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def run_all(self, tasks: list[Task]) -> None:
        for number, task in enumerate(tasks):
            self.run(task, sum(later.limit_s for later in tasks[number + 1 :] if later.kept))

    def run(self, task: Task, set_aside_s: float = 0) -> None:
        """Run one task, or note that its time is gone. Never raises for what the task does."""
        left_s = self.limit_s - (time.monotonic() - self.begin) - set_aside_s
        limit_s = min(task.limit_s, left_s)
        if limit_s < 10:
            self.note(f"{task.name:<18} left out: {left_s:.0f} s were left")
            return
        begin = time.monotonic()
        code, said = self._process(task, limit_s)
        took = time.monotonic() - begin
        end = {0: "done"}.get(code, f"stopped after {limit_s:.0f} s" if code is None else f"failed, exit code {code}")
        self.note(f"{task.name:<18} {end}, {took:.1f} s" + (f": {said[-1]}" if code == 0 and said else ""))
        if code != 0:
            self.failed.append(task.name)
            self.note("\n".join(f"    {words}" for words in said[-LAST_LINES:]))
        if task.after:
            task.after()

    def note(self, words: str) -> None:
        self.notes.append(words)
        print(words, flush=True)

    def _process(self, task: Task, limit_s: float) -> tuple[int | None, list[str]]:
        """(exit code, lines said); None when it had to be stopped. What it says goes to the log as it comes."""
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        env = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"\n== {task.name}\n")
            file.flush()
            start = self.log.stat().st_size
            process = subprocess.Popen(
                [sys.executable, "-m", *task.words],
                cwd=ROOT,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(limit_s)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)  # the launcher's children too
                process.wait()
        text = self.log.read_bytes()[start:].decode("utf-8", "replace")
        said = [words.split("\r")[-1] for words in text.splitlines()]
        for folder, name in ((str(self.work), "WORK"), (str(ROOT), "."), (sys.prefix, "PYTHON")):
            said = [words.replace(folder, name) for words in said]
        with open(self.log, "rb+") as file:  # progress bars and folder names shortened
            file.truncate(start)
            file.seek(start)
            file.write(("\n".join(said) + "\n").encode())
        return code, [words for words in said if words.strip()]
