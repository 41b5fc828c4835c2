import errno
import os

import pytest

from kits_dist.utils import parallel
from kits_dist.utils.errors import JobFailed


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOENT, errno.EACCES, errno.ENOSYS])
def test_without_shared_memory_one_process_does_the_work(monkeypatch, capsys, number):
    class Context:
        def Lock(self):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(parallel.multiprocessing, "get_context", lambda method: Context())
    assert sorted(parallel.run_all(abs, [-1, 2, -3], "test", workers=2)) == [(-3, 3), (-1, 1), (2, 2)]
    assert "one process does all the work, as with workers=1" in capsys.readouterr().err


def test_no_more_workers_are_started_than_the_machine_affords(monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "affordable_workers", lambda: 2)
    monkeypatch.setattr(parallel, "_pool", asked.append)  # None: this process
    list(parallel.run_all(abs, [1, 2, 3], "test"))
    list(parallel.run_all(abs, [1, 2, 3], "test", workers=3))
    list(parallel.run_all(abs, [1], "test", workers=3))
    assert asked == [2, 3]  # what a user names is taken; a single item needs no pool


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "try again")])
def test_a_limit_of_processes_is_one_sentence(monkeypatch, error):
    class Pool:
        def submit(self, *args):
            raise error

        def shutdown(self, **how):
            pass

    monkeypatch.setattr(parallel, "_pool", lambda workers: Pool())
    with pytest.raises(JobFailed, match="no further process or thread can be started .*workers=1, or allow more"):
        list(parallel.run_all(abs, [1, 2], "test", workers=2))
