"""Streams whose reader is gone, whose disk is full, that are closed or ASCII only: text is lost, nothing is raised."""

import io
import os
import sys

import pytest

from kits_dist.utils import output


def protect(monkeypatch, stream) -> None:
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    output.protect_output()


@pytest.fixture
def pipe():
    """(number to read from, stream to write to)"""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)  # nothing to read is an error, not a wait
    with open(writing, "w", encoding="ascii") as stream:
        yield reading, stream


def test_a_reader_that_leaves_ends_nothing(pipe, monkeypatch):
    reading, stream = pipe
    protect(monkeypatch, stream)
    os.close(reading)
    for _ in range(3):
        print("x" * 10**5, flush=True)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_the_log_ends_nothing(monkeypatch):
    with open("/dev/full", "w") as stream:
        protect(monkeypatch, stream)
        print("x" * 10**5, flush=True)


def test_every_name_can_be_printed_where_output_is_ascii_only(pipe, monkeypatch):
    reading, stream = pipe
    protect(monkeypatch, stream)
    print("Müller", os.fsdecode(b"Ni\xe8re"), flush=True)
    assert os.read(reading, 100) == b"M\\xfcller Ni\\udce8re\n"
    os.close(reading)


def test_a_stream_that_was_closed_from_the_beginning_takes_text(monkeypatch, capfd):
    protect(monkeypatch, None)
    print("into file 1", flush=True)
    assert capfd.readouterr().out == "into file 1\n"


def test_a_closed_file_number_is_not_given_to_the_next_file(monkeypatch):
    opened = iter([1, 2, 7])
    closed, inherited = [], []
    monkeypatch.setattr(output.os, "open", lambda *args: next(opened))
    monkeypatch.setattr(output.os, "close", closed.append)
    monkeypatch.setattr(output.os, "set_inheritable", lambda handle, yes: inherited.append(handle))
    output._open_missing_files()
    assert closed == [7] and inherited == [1, 2]  # these stay open, on /dev/null


def test_a_full_pipe_that_does_not_block_is_waited_for(pipe, monkeypatch):
    reading, stream = pipe
    os.set_blocking(stream.fileno(), False)
    protect(monkeypatch, stream)
    received = []
    monkeypatch.setattr(output.select, "select", lambda *args: received.append(os.read(reading, 2**20)))
    print("x" * 300_000, flush=True)
    received.append(os.read(reading, 2**20))
    assert len(b"".join(received)) == 300_001
    os.close(reading)


def test_unbuffered_output_stays_so(pipe, monkeypatch):
    reading, stream = pipe
    unbuffered = io.TextIOWrapper(stream.buffer, encoding="utf-8", write_through=True)
    protect(monkeypatch, unbuffered)
    print("at once")
    assert os.read(reading, 100) == b"at once\n"
    os.close(reading)
    unbuffered.detach()


def test_what_is_no_file_stays_as_it_is(monkeypatch):
    notebook = io.StringIO()
    protect(monkeypatch, notebook)
    assert sys.stdout is notebook
