"""Train one model on 1..N processes.

accelerate launch --config_file launch/cpu.yaml -m kits_dist.train config=configs/demo.yaml data.store=DIR run=DIR

Works with or without GPUs, under `accelerate launch`, `torchrun` or plain `python -m`.
"""

from kits_dist import cli
from kits_dist.config import Config
from kits_dist.data.coverage import refuse_narrow_window
from kits_dist.data.store import Store
from kits_dist.training.run_check import check_run


def main(config: Config) -> None:
    """Refuse what small files tell, then train. Raises InputError, JobFailed or Preempted."""
    store = Store(config.data.store)
    check_run(config, store)
    refuse_narrow_window(store, config.data)

    from kits_dist.training import loop  # torch takes seconds to import: a wrong argument is answered without it

    loop.run(config, store)


if __name__ == "__main__":
    cli.run(main, Config)
