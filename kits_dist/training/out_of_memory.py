"""What to tell a user whose training does not fit into GPU memory."""

from kits_dist.config import Config
from kits_dist.distributed import gpu_memory
from kits_dist.distributed.precision import launched_precision


def advice(config: Config, error: Exception) -> str:
    """Return what did not fit and what to try next; checkpoints are whole, so the run can be resumed with it."""
    data = config.data
    mode = launched_precision(config.train).mode
    options = []

    divisor = next((n for n in range(2, data.batch_size + 1) if data.batch_size % n == 0), 0)
    if divisor:
        accumulate = divisor * config.optim.accumulate
        options.append(
            f"data.batch_size={data.batch_size // divisor} optim.accumulate={accumulate} (as many samples per step)"
        )
    if mode in ("fp32", "tf32"):
        options.append("train.precision=bf16")
    if data.residency != "mmap":
        options.append("data.residency=mmap")
    options.append("smaller data.size_px in another run folder")

    return (
        f"out of GPU memory with data.batch_size={data.batch_size}, data.size_px={data.size_px[0]}x{data.size_px[1]}, "
        f"precision {mode}, data.residency={data.residency} ({gpu_memory.out_of_memory(error)}). "
        f"Resume with resume=auto and {', or '.join(options)}"
    )
