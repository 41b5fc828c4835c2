"""Which errors say that GPU memory is full: the texts are those of the libraries."""

import pytest
import torch

from kits_dist import cli, phantom, predict, train
from kits_dist.config import Config
from kits_dist.distributed import gpu_memory
from kits_dist.training import loop
from kits_dist.utils.errors import JobFailed
from tests.helpers.small_run import SMALL

DALI = (
    "Critical error in pipeline:\nError in GPU operator `nvidia.dali.fn.warp_affine`,\nwhich was used in the pipeline "
    'definition with the following traceback:\n\n  File "dali.py", line 90, in pipeline\n\nencountered:\n\n'
)
FULL = [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"), "Tried to allocate"),
    (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), "CUDA error: out of memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "CUBLAS_STATUS_ALLOC"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), "cublasCreate"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "CUDNN_STATUS_ALLOC_FAILED"),
    (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), "CUDNN_STATUS_NOT_INITIALIZED"),
    (RuntimeError("CUDNN_BACKEND: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "DEVICE_ALLOCATION_FAILED"),
    (MemoryError("CUDA allocation failed\nCan't allocate 4294967296 bytes on device 0."), "CUDA allocation failed"),
    (RuntimeError(f"{DALI}CUDA allocation failed\nCurrent pipeline object is no longer valid."), "CUDA allocation"),
    (RuntimeError(f"{DALI}CUDA runtime API error cudaErrorMemoryAllocation (2):\nout of memory"), "API error"),
    (RuntimeError(f"{DALI}CUDA driver API error CUDA_ERROR_OUT_OF_MEMORY (2):\nout of memory"), "driver API error"),
    (torch.distributed.DistBackendError("NCCL error\nLast error:\nCuda failure 2 'out of memory'"), "Cuda failure 2"),
]
OTHER = [
    MemoryError(),
    MemoryError("Unable to allocate 8.00 GiB for an array with shape (2, 2) and data type float32"),
    MemoryError("CUDA allocation failed\nCan't allocate 4294967296 bytes on host."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("out of resource: shared memory, Required: 131072, Hardware limit: 101376"),
]


@pytest.mark.parametrize(("error", "words"), FULL)
def test_every_library_that_finds_no_gpu_memory_is_understood(error, words):
    line = gpu_memory.out_of_memory(error)
    assert words in line and "\n" not in line


@pytest.mark.parametrize("error", OTHER)
def test_other_errors_are_not_taken_for_it(error):
    assert gpu_memory.out_of_memory(error) == ""


def test_what_led_to_an_error_counts():
    failed, other = RuntimeError("the loader failed"), RuntimeError("the loader failed")
    failed.__cause__ = other.__context__ = MemoryError("CUDA allocation failed")
    assert gpu_memory.out_of_memory(failed) == gpu_memory.out_of_memory(other) == "CUDA allocation failed"


@pytest.mark.parametrize("error", [error for error, _ in FULL])
def test_a_training_gives_the_same_advice_whoever_found_no_memory(store, tmp_path, monkeypatch, error):
    def full(*_):
        raise error

    monkeypatch.setattr(loop, "train", full)
    line = gpu_memory.out_of_memory(error)
    with pytest.raises(JobFailed) as caught:
        train.main(cli.load(Config, [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL]))
    assert f"({line}). Resume with resume=auto and data.batch_size=1 optim.accumulate=3" in str(caught.value)


def test_a_training_passes_other_errors_on(store, tmp_path, monkeypatch):
    def full(*_):
        raise MemoryError("of the host")

    monkeypatch.setattr(loop, "train", full)
    with pytest.raises(MemoryError, match="of the host"):
        train.main(cli.load(Config, [f"data.store={store.path}", f"run={tmp_path / 'run'}", *SMALL]))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": ""}, {"PYTORCH_CUDA_ALLOC_CONF": ""}),
    ],
)
def test_segments_grow_unless_the_user_has_set_the_allocator(before, after):
    gpu_memory.use_expandable_segments(before)
    assert before == after


@pytest.mark.parametrize(("schema", "advice"), [(predict.Args, "Try a smaller batch_size. "), (phantom.Args, "")])
def test_a_program_that_runs_a_network_says_what_to_try(capsys, schema, advice):
    def main(args):
        raise MemoryError("CUDA allocation failed\nCan't allocate 4294967296 bytes on device 0.")

    words = ["run=x", "input=x", "output=x"] if schema is predict.Args else ["output=x"]
    with pytest.raises(SystemExit) as caught:
        cli.run(main, schema, words)
    said = f"out of GPU memory (CUDA allocation failed). {advice}nvidia-smi shows what else is on the GPU.\n"
    assert caught.value.code == 1 and capsys.readouterr().err.endswith(said)
