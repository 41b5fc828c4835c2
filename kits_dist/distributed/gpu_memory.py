"""GPU memory: how torch's allocator divides it, and whether an error says that it is full.

Not every library asks torch's allocator: DALI, cuDNN, cuBLAS and NCCL take memory from the driver, and each says in
words of its own that there is none left.
"""

import os
import re
from collections.abc import MutableMapping

_FULL = re.compile(
    r"CUDA out of memory"  # torch's allocator
    r"|CUDA error: out of memory|cudaErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY"  # the runtime and the driver
    # DALI, whose bad_alloc becomes a MemoryError; it says the same of page-locked host memory
    r"|CUDA allocation failed(?!\s*Can't allocate \d+ bytes on host)"
    # libraries fail to start rather than to compute where nothing is left
    r"|CU[A-Z]+_STATUS_(?!\w*HOST)\w*ALLOC\w*FAILED|CU(BLAS|DNN)_STATUS_NOT_INITIALIZED"
    r"|Cuda failure (\d+ )?'out of memory'"  # NCCL
)


def out_of_memory(error: BaseException | None) -> str:
    """Return the line in which `error`, or one that led to it, says that GPU memory is full; "" where none does."""
    while error:
        text = str(error)
        found = _FULL.search(text)
        if found:
            begin = text.rfind("\n", 0, found.start()) + 1
            return text[begin:].splitlines()[0].strip()
        error = error.__cause__ or error.__context__
    return ""


def use_expandable_segments(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let torch's allocator grow its segments: sizes that vary, as in validation, then leave fewer gaps.

    Has an effect only before the first allocation. Where the user has set the allocator's options they stay; where the
    system cannot do it, torch says so and goes on without.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in environ:  # the former name of the same
        environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
