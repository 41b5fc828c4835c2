"""All topics, in the order in which one would mend them."""

from kits_dist.diagnostics import devices, host
from kits_dist.diagnostics.facts import Check, Facts

RULES = (
    devices.python,
    devices.torch,
    devices.gpu,
    devices.driver,
    devices.kernels,
    devices.dali,
    devices.precision,
    devices.batch,
    host.cores,
    host.memory,
    host.store,
    host.store_disk,
    host.run_disk,
    host.shm,
    host.port,
    host.processes,
    host.launcher,
    host.encoder,
)


def judge(facts: Facts) -> list[Check]:
    """One check for each topic that means something on this machine."""
    return [check for rule in RULES if (check := rule(facts)) is not None]
