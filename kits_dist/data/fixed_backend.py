"""One real batch, repeated: what a step costs when data cost nothing. The ceiling that benchmarks compare with."""

from collections.abc import Iterator

from kits_dist.batch import Batch


class FixedLoader:
    """Repeats one batch of another loader, endlessly."""

    def __init__(self, batch: Batch):
        self.batch = Batch(*(tensor.clone() for tensor in batch))

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch
