"""Run programs as processes of their own: one to its end, or a list of tasks of which each has a time limit."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.lib.lines import Line, read
from kits_dist.utils.errors import JobFailed

ROOT = Path(__file__).resolve().parents[2]
LAST_LINES = 15  # of a program that failed, quoted in the message
LEAST_S = 10  # a task that has less time is not started
GRACE_S = 20  # at most, of the time of a task: from SIGTERM, when benchmarks write what they have, to SIGKILL
STRETCH = 2  # a task may use what earlier ones left over, up to this multiple of its limit


def environment() -> dict[str, str]:
    """Return the environment of a program: it finds this repository from any folder."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def run(words: list[str], what: str = "", limit_s: float | None = None) -> None:
    """Run `python -m WORDS` to its end. Raises JobFailed with `what` failed and its last lines."""
    what = what or words[0]
    command = [sys.executable, "-m", *words]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise JobFailed(f"{what} did not end within {limit_s} s.") from error
    if done.returncode:
        raise JobFailed(f"{what} failed:\n" + "\n".join(done.stderr.strip().splitlines()[-LAST_LINES:]))


def result_of(words: list[str], what: str, limit_s: float | None = None) -> Any:
    """Run a program and return the JSON that it writes to its argument `result`. Raises JobFailed."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run([*words, f"result={result}"], what, limit_s)
        return json.loads(result.read_text())


class Task(NamedTuple):
    """A program of a `Runner`."""

    name: str
    words: list[str]  # what follows `python -m`
    limit_s: float
    kept: bool = False  # earlier tasks may not use up its time
    needs: Path | None = None  # a file that an earlier task makes: without it this task is left out
    after: Callable[[], None] | None = None  # collects what it made


class Runner:
    """Runs tasks within `limit_s` seconds in total. One that fails is noted, and the next one begins.

    Benchmarks among the tasks write their lines to `self.lines_folder`, from where `take_lines` collects them.
    `notes` holds a line for each task; the output of the tasks goes to `log`.
    """

    def __init__(self, log: Path, work: Path, limit_s: float):
        """work: a folder whose name appears in no log."""
        self.log, self.work, self.limit_s = log, work, limit_s
        self.lines_folder = work / "lines"
        self.begin = time.monotonic()
        self.notes: list[str] = []
        self.failed: list[str] = []
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def run_all(self, tasks: list[Task]) -> None:
        """Run the tasks in order. Each ends at the latest when it would if all before it had used their limits."""
        planned_s = 0.0
        for number, task in enumerate(tasks):
            planned_s += task.limit_s
            kept_s = sum(later.limit_s for later in tasks[number + 1 :] if later.kept)
            self.run(task, min(planned_s, self.limit_s - kept_s))

    def run(self, task: Task, until_s: float = math.inf) -> None:
        """Run one task, or note why not. Never raises for what the task does.

        until_s   seconds after the start of the runner by which it must have ended
        """
        if task.needs and not task.needs.exists():
            self.note(f"{task.name:<18} left out: an earlier task made no {task.needs.relative_to(self.work)}")
            return
        left_s = min(until_s, self.limit_s) - (time.monotonic() - self.begin)
        limit_s = min(STRETCH * task.limit_s, left_s)
        if limit_s < LEAST_S:
            self.note(f"{task.name:<18} left out: {max(0.0, left_s):.0f} s were left")
            return

        begin = time.monotonic()
        code, output = self._process(task, limit_s)
        took_s = time.monotonic() - begin
        end = {0: "done", None: f"stopped after {limit_s:.0f} s"}.get(code, f"failed, exit code {code}")
        self.note(f"{task.name:<18} {end}, {took_s:.1f} s" + (f": {output[-1]}" if code == 0 and output else ""))
        if code != 0:
            self.failed.append(task.name)
            self.note("\n".join(f"    {text}" for text in output[-LAST_LINES:]))
        if task.after:
            task.after()

    def note(self, text: str) -> None:
        """Keep and print a line about a task."""
        self.notes.append(text)
        print(text, flush=True)

    def take_lines(self, target: Callable[[str], Path]) -> list[Line]:
        """Move the lines of the last benchmark to the ends of the files `target(name)`, and return them."""
        found = []
        for path in sorted(self.lines_folder.glob("*.jsonl")):
            found += read(path)
            with open(target(path.name), "a", encoding="utf-8") as file:
                file.write(path.read_text(encoding="utf-8"))
            path.unlink()
        return found

    def _process(self, task: Task, limit_s: float) -> tuple[int | None, list[str]]:
        """Return the exit code, None for a task that was stopped, and its output, which is logged as it comes."""
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(f"\n== {task.name}\n")
            file.flush()
            start = self.log.stat().st_size
            process = subprocess.Popen(
                [sys.executable, "-m", *task.words],
                cwd=ROOT,
                env=environment() | {"PYTHONUNBUFFERED": "1", "COLUMNS": "120"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            grace_s = min(GRACE_S, limit_s / 4)
            try:
                code = process.wait(limit_s - grace_s)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # and the children of a launcher
                process.wait()
        return code, self._shortened(start)

    def _shortened(self, start: int) -> list[str]:
        """Rewrite the log from `start` on without progress bars and folder names; return its lines that hold text."""
        text = self.log.read_bytes()[start:].decode("utf-8", "replace")
        for folder, name in ((str(self.work), "WORK"), (str(ROOT), "."), (sys.prefix, "PYTHON")):
            text = text.replace(folder, name)
        output = [line.split("\r")[-1] for line in text.splitlines()]
        with open(self.log, "rb+") as file:
            file.truncate(start)
            file.seek(start)
            file.write(("\n".join(output) + "\n").encode())
        return [line for line in output if line.strip()]
