"""Runs that several files compare with."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.launching import train
from tests.helpers.small_run import SHORT


@pytest.fixture(scope="session")
def uninterrupted(store, tmp_path_factory) -> Callable[..., Path]:
    """(world, local_world) -> the folder of a SHORT run that nothing interrupted, trained once."""

    @functools.cache
    def trained(world: int, local_world: int) -> Path:
        run = tmp_path_factory.mktemp("uninterrupted") / "run"
        train(store, run, SHORT, world=world, local_world=local_world)
        return run

    return lambda world, local_world=0: trained(world, local_world or world)
