"""Arguments that cannot be meant are refused before anything is timed, and the programs stay programs."""

import ast
from pathlib import Path

import pytest
import torch

import benchmarks.all
from benchmarks import end_to_end, epoch, loader, model, predict, scaling
from benchmarks.lib import lines
from kits_dist import cli
from kits_dist.utils.errors import InputError

ROOT = Path(lines.__file__).parents[2]


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(InputError, match="only=\\['speed'\\]: choose from"):
        benchmarks.all.Args(only=("speed",))


def test_an_unknown_variant_is_refused():
    with pytest.raises(InputError, match=r"variants=\['fast'\]: choose from"):
        model.main(model.Args(variants=("fast",)))


def test_on_a_gpu_the_loader_is_measured_from_mapped_files_and_from_gpu_memory():
    found = loader.settings_of(torch.device("cuda", 0), 128)
    on_gpu = {name: one.residency for name, one in found.items() if one.device.type == "cuda"}
    assert on_gpu == {
        "dali_gpu_still": "mmap",
        "dali_gpu_resident_still": "gpu",
        "dali_gpu_augmented": "mmap",
        "dali_gpu_resident_augmented": "gpu",
    }


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(InputError, match=r"devices=\[tpu\]: this machine has cpu"):
        loader.Args(devices=("cpu", "tpu"))


def test_scaling_to_one_process_and_half_a_size_are_refused():
    with pytest.raises(InputError, match="processes=1: use 2 or more"):
        scaling.Args(processes=1)
    with pytest.raises(InputError, match="size_px=64x0: give both sides, or neither"):
        scaling.Args(size_px=(64, 0))


def test_a_program_is_imported_by_nobody():
    """What two of them share is in benchmarks/lib."""
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__"}
    found = []
    for path in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("benchmarks"):
                names = {alias.name for alias in node.names} if node.module == "benchmarks" else set()
                names |= set(node.module.split(".")[1:2])
                found += [f"{path.name} -> {name}" for name in names & programs]
    assert not found


@pytest.mark.parametrize("program", [end_to_end, epoch, predict])
def test_a_precision_that_does_not_exist_is_refused_before_anything_is_measured(program):
    """Accelerate takes a name that it does not know for fp32."""
    with pytest.raises(InputError, match="precision=fp8"):
        cli.load(program.Args, ["precision=fp8"])
