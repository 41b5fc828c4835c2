"""The graph that DALI would run on a GPU: complete, and made of operators that DALI has for that device."""

import pytest
import torch

from kits_dist.config import AugmentConfig, DataConfig
from kits_dist.data.backends.dali_graph import build_graph
from kits_dist.data.dataset import SliceDataset
from kits_dist.data.samples import select_samples
from kits_dist.data.slice_cache import MappedSlices

pytest.importorskip("nvidia.dali", reason="needs NVIDIA DALI")


class InGpuMemory(MappedSlices):
    """Says that its slices are in GPU memory; the graph asks for no more."""

    device = torch.device("cuda", 0)


@pytest.fixture
def trace(store, monkeypatch):
    """(slice source, context, augmentation) -> the graph for a GPU, traced but not built, which would need a driver."""
    from nvidia.dali.pipeline import Pipeline

    def build(source: type[MappedSlices], context: int, augment: AugmentConfig | None) -> Pipeline:
        data = DataConfig(store=str(store.path), context=context, batch_size=4, size_px=(64, 64))
        samples = select_samples(store, store.splits.select(0)[0], data, training=augment is not None)
        slices = source(store, context)
        dataset = SliceDataset(
            store, samples, data, augment=augment, seed=0, norm=store.normalization(0), slice_source=slices
        )
        monkeypatch.setattr(Pipeline, "build", lambda self: None)
        nothing = lambda info: ()  # noqa: E731
        graph = build_graph(dataset, nothing, nothing, torch.device("cuda", 0), torch.float16, 1)
        graph._build_graph()
        return graph

    return build


def operators(graph) -> set[tuple[str, str]]:
    """Return the names of the graph's operators, as in DALI's registries, and their devices."""
    return {(op._op.schema.Name(), op.spec.OutputDevice(0)) for op in graph._ops}


@pytest.mark.parametrize("source", [MappedSlices, InGpuMemory])
@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("augment", [AugmentConfig(), AugmentConfig(noise_p=0), None])
def test_every_operator_exists_for_its_device(trace, source, context, augment):
    from nvidia.dali import backend

    graph = trace(source, context, augment)
    graph._device_id = None  # serialized without a driver, schemas and arguments are checked all the same
    assert graph.serialize()

    known = {
        "gpu": backend.RegisteredGPUOps(),
        "cpu": backend.RegisteredCPUOps(),
        "mixed": backend.RegisteredMixedOps(),
    }
    used = operators(graph)
    assert [(name, device) for name, device in used if name not in known[device]] == []
    on_gpu = {name for name, device in used if device == "gpu"}
    assert "WarpAffine" in on_gpu and ("GaussianBlur" in on_gpu) == (augment is not None)
    assert [output.device for output in graph._graph_outputs] == ["gpu"] * 2


@pytest.mark.parametrize(("source", "devices"), [(MappedSlices, {"cpu"}), (InGpuMemory, {"cpu", "gpu"})])
def test_slices_are_taken_where_they_are_and_pixels_change_on_the_gpu_only(trace, source, devices):
    found = operators(trace(source, 0, AugmentConfig()))
    assert {device for name, device in found if name == "ExternalSource"} == devices
    on_cpu = {name for name, device in found if device == "cpu"}
    which_samples_drew_a_change = {"_conditional__Split", "_ArithmeticGenericOp"}
    noise_of_a_sample = {"Slice", "Reshape"}  # of the bank, which DALI would copy for each sample on a GPU
    assert on_cpu == {"ExternalSource", "_TensorSubscript"} | which_samples_drew_a_change | noise_of_a_sample
