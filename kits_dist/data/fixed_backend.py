"""One real batch, repeated: what a step costs when data cost nothing. The ceiling that benchmarks compare with."""

from collections.abc import Iterator

from kits_dist.batch import Batch


class FixedLoader:
    """Repeats the first batch of another loader, endlessly or as often as that one would yield."""

    def __init__(self, batch: Batch, num_batches: int | None):
        self.batch = Batch(*(tensor.clone() for tensor in batch))
        self.num_batches = num_batches

    def __iter__(self) -> Iterator[Batch]:
        step = 0
        while self.num_batches is None or step < self.num_batches:
            step += 1
            yield self.batch
