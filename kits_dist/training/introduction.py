"""The first lines of a run: what runs where, by which code, on how much data."""

from collections.abc import Iterator
from typing import Any

from kits_dist.config import Config
from kits_dist.data.backends import real_backend
from kits_dist.data.coverage import coverage_line
from kits_dist.data.dataset import SliceDataset
from kits_dist.distributed.runtime import Runtime

Facts = dict[str, str | int]


def facts_of(
    environment: dict[str, Any], runtime: Runtime, config: Config, dataset: SliceDataset, val_cases: int, steps: int
) -> Facts:
    """Return {name: value} of what the configuration does not say.

    environment   of this process, see kits_dist.utils.environment
    dataset       training slices
    val_cases     number of validation cases
    steps         optimizer steps of the whole run
    """
    world = runtime.ranks.world
    dirty = " (dirty)" if environment["dirty"] else ""
    device = f"CPU ({environment['cpu_cores']} cores)"
    if environment["gpu"]:
        device = f"{environment['gpus']} x {environment['gpu']}"

    return {
        "data": dataset.store.meta["data"],
        "commit": f"{environment['commit']}{dirty}",
        "torch": environment["torch"],
        "device": device,
        "processes": world,
        "global batch": world * config.data.batch_size * config.optim.accumulate,
        "precision": runtime.precision.mode,
        "training slices": len(dataset.rows),
        "validation cases": val_cases,
        "steps": steps,
    }


def introduction(
    facts: Facts, runtime: Runtime, config: Config, dataset: SliceDataset, train_cases: int
) -> Iterator[str]:
    """Yield the lines that rank 0 prints before the first step."""
    yield f"commit {facts['commit']}, torch {facts['torch']}, {facts['device']}"
    yield (
        f"{facts['processes']} processes x batch {config.data.batch_size} x accumulate {config.optim.accumulate} = "
        f"{facts['global batch']} a step"
    )
    yield f"precision {runtime.precision.mode}: {runtime.precision.reason}"
    backend = config.data.backend
    if backend == "auto":
        backend = f"{real_backend(backend, runtime.device)} (auto)"
    yield f"data backend {backend}, slices from {dataset.slice_source.description}"
    yield (
        f"data: {facts['data']}; {facts['training slices']} training slices of {train_cases} cases, "
        f"{facts['validation cases']} validation cases; {config.optim.epochs} epochs = {facts['steps']} steps"
    )
    if line := coverage_line(dataset.store, config.data):
        yield line
    if config.data.sampler != "natural":
        assert dataset.order is not None  # training slices have one
        shares = dataset.order.shares()
        named = [f"{group['an_epoch']} {name} (of {group['members']})" for name, group in shares.items()]
        more = f", ... {len(shares)} in all, in sampler.json" if len(named) > 3 else ""
        yield f"each epoch of sampler={config.data.sampler}: {', '.join(named[:3])}{more}"
    if config.data.fold == "all":
        yield "data.fold=all: validation cases are training cases; the val scores say nothing about new patients"
