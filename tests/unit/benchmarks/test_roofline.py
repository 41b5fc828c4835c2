"""The work of a step is counted, not guessed; what the device allows, and what a GPU that nobody measured should do."""

import re
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import plan
from benchmarks.lib import lines, roofline, training
from benchmarks.lib.model_steps import Mode, build_step, counted
from kits_dist.config import ModelConfig
from kits_dist.diagnostics.checks import BATCH, FIXED_GPU_GB, STEP_GB
from kits_dist.models import build_model
from kits_dist.training.mfu import peak_of, short_name
from kits_dist.utils.errors import InputError
from tests.helpers.benchmark_lines import made

CPU = torch.device("cpu")


def test_the_counted_work_is_that_of_the_convolutions():
    # width 1 at 16x16, a multiply-add counts 2. Pixels and channels of the five levels: 256x1 64x2 16x4 4x8 1x16
    # down, 3x3: 256*(1+1) + 64*(2+4) + 16*(8+16) + 4*(32+64) + 1*(128+256) = 2048 channel products, * 9 * 2 =  36864
    # up, 2x2 with stride 2: a coarse pixel gives 4 fine ones: 64*2*1 + 16*4*2 + 4*8*4 + 1*16*8 = 512, * 4 * 2 =  4096
    # merge, 3x3: 256*(2+1) + 64*(8+4) + 16*(32+16) + 4*(128+64) = 3072, * 9 * 2                              =  55296
    # head, 1x1: 256 * 2                                                                                      =    512
    forward = 36864 + 4096 + 55296 + 512
    network = ModelConfig(arch="simple_unet", width=1)
    built = build_model(network, 1, pretrained=False)
    assert roofline.forward_gflop(built, (3, 1, 16, 16)) * 1e9 == pytest.approx(forward)
    assert built.training  # left as it was
    # the backward pass is two of them, but for the input of the first convolution, which needs no gradient: 256 * 9 * 2
    work = counted(network, Mode("fp32", False), (16, 16), 2, "cpu")
    assert work.flop == 2 * (3 * forward - 4608)
    assert counted(network, Mode("fp32", False, train=False), (16, 16), 2, "cpu").flop == 2 * forward


def test_counting_on_fake_tensors_agrees_with_torchs_counter_on_real_ones():
    network = ModelConfig(arch="unet", encoder="resnet18", encoder_weights="none")
    mode = Mode("fp32", True)
    step = build_step(network, mode, (32, 32), 2, CPU)
    with FlopCounterMode(display=False) as counter:
        step()
    assert counted(network, mode, (32, 32), 2, "cpu").flop == counter.get_total_flops()


def test_bytes_are_those_read_and_written():
    def build():
        a, b = torch.zeros(4, 8), torch.zeros(8, 2)

        def step():
            c = a @ b  # reads 128 + 64, writes 32 bytes
            c.relu_()  # reads 32, writes 32
            c.view(2, 4).t()  # views move nothing
            torch.empty(1000)
            a.zero_()  # writes 128

        return step

    work = roofline.count(build)
    assert [operator.nbytes for operator in work.operators] == [224, 64, 128]
    assert work.flop == 2 * 4 * 8 * 2 and work.by_kind()["relu"] == 64


def test_what_the_backward_pass_needs_is_counted_once():
    def build():
        x, first, second = torch.zeros(8, 4), *(torch.nn.Parameter(torch.zeros(n, n - 1)) for n in (4, 3))
        # kept: x (128 bytes) for the gradient of `first`, the sigmoid's output (96) for its own and that of `second`;
        # the weight `second`, kept for the gradient of what comes before it, is no activation
        return lambda: ((x @ first).sigmoid() @ second).sum().backward()

    assert roofline.count(build).saved_bytes == 128 + 96


def test_the_peak_is_what_is_alive_at_one_time():
    def build():
        a = torch.zeros(8)  # 32 bytes

        def step():
            b = a + 1  # 64
            c = b.view(2, 4) * 2  # 96: the view takes nothing
            del b  # 64
            return c + c  # 96

        return step

    assert roofline.count(build).peak_bytes == 96


@pytest.mark.parametrize(("precision", "fits"), [("bf16", 40), ("fp32", 80)])
def test_doctor_and_plan_name_the_counted_peak_of_a_step(precision, fits, capsys):
    network = ModelConfig(encoder_weights="none", regions=("kidney_and_mass", "tumor"))
    peak_gb = counted(network, Mode(precision, True), (512, 512), BATCH, "cuda").peak_bytes / 1e9
    named = BATCH * STEP_GB[precision]
    assert named == pytest.approx(peak_gb, rel=0.02)  # weights and moments, 0.4 GB, are in FIXED_GPU_GB
    assert fits / 2 < named + FIXED_GPU_GB < fits  # GB of the smallest card
    plan.main(plan.Args(gpu="A6000", precision=precision))
    said = float(re.search(r"a batch takes ([\d.]+) GB at most", capsys.readouterr().out)[1])
    assert said == pytest.approx(peak_gb, rel=0.02)  # of one region fewer


def test_the_bound_takes_each_operator_for_itself():
    work = roofline.Work([roofline.Operator("a", 100, 1), roofline.Operator("b", 1, 30)], 0)
    seconds, memory_share = roofline.bound(work, flops=10, bytes_per_s=10)
    assert seconds == 10 + 3 and memory_share == pytest.approx(3 / 13)  # not max(101 / 10, 31 / 10)


def test_autocast_is_counted_as_on_a_gpu():
    def build():
        image = torch.zeros(1, 1, 4, 4, dtype=torch.bfloat16)

        def step():
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.nn.functional.interpolate(image, scale_factor=2).dtype == torch.bfloat16

        return step

    work = roofline.count(build)
    assert [operator.nbytes for operator in work.operators] == [2 * 16 + 2 * 64]  # no cast to float32


def test_fp16_does_the_work_of_bf16():
    network = ModelConfig(arch="simple_unet", width=1)
    bf16, fp16 = (counted(network, Mode(name, True), (16, 16), 2, "cuda") for name in ("bf16", "fp16"))
    fp32 = counted(network, Mode("fp32", True), (16, 16), 2, "cuda")
    assert fp16.flop == bf16.flop and fp16.nbytes == bf16.nbytes < fp32.nbytes and fp16.saved_bytes < fp32.saved_bytes
    assert peak_of("H100").flops_in("fp16") == peak_of("H100").flops_in("bf16") > peak_of("H100").flops_in("tf32")


def test_nobody_looks_at_fewer_pixels_unseen():
    network = torch.nn.Conv2d(1, 1, 1)
    watch = training.Watch(network)
    network(torch.zeros(3, 1, 8, 4))
    network(torch.zeros(2, 1, 8, 4))
    assert (watch.images, watch.pixels_per_image()) == (5, 32)
    network(torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="too many values"):  # two sizes
        watch.pixels_per_image()


# plan


def measured(reached: float, precision: str = "bf16", gpu: str | None = "NVIDIA H100 80GB HBM3", variant: str = "a"):
    config = {
        "mode": "train",
        "precision": precision,
        "compile": False,
        "fused": None,
        "size_px": [64, 64],
        "batch_size": 4,
        "model": {"arch": "simple_unet", "encoder": "resnet34", "width": 4},
        "roofline": {"images_per_s": 1000.0, "reached": reached, "memory_share": 0.5},
    }
    line = made([1000 * reached], variant=variant, **config)
    return replace(line, question="model", env=line.env | {"gpu": gpu, "gpus": int(gpu is not None)})


def planned(tmp_path, capsys, *recorded, **args) -> str:
    for line in recorded:
        lines.record(line, tmp_path)
    capsys.readouterr()
    small = {"arch": "simple_unet", "size_px": (64, 64), "batch_size": 4}
    results = str(tmp_path) if recorded else ""
    plan.main(plan.Args(**{"gpu": "A6000"} | small | args, results=results))
    return capsys.readouterr().out


def test_a_plan_is_marked_as_predicted_and_says_what_it_assumes(tmp_path, capsys):
    said = planned(tmp_path, capsys, measured(0.5), measured(0.4, variant="b"), gpus=8)
    assert said.startswith("PREDICTED, not measured: 8 x A6000")
    assert "154.8 TFLOP/s, 768 GB/s" in said and "0.40 .. 0.50 in 2 bf16 GPU lines" in said
    low, high = (float(word) for word in re.findall(r"^PREDICTED (?:low|high): (\d+) images/s", said, flags=re.M))
    bound = float(re.search(r"bound: (\d+) images/s", said)[1])
    work = counted(ModelConfig(arch="simple_unet"), Mode("bf16", True), (64, 64), 4, "cuda")
    assert bound == pytest.approx(4 / roofline.bound(work, 154.8e12, 768e9).seconds, abs=0.5)
    assert low / bound == pytest.approx(0.4, rel=0.01) and high / bound == pytest.approx(0.5, rel=0.01)
    assert f"{plan.FOLD_SLICES} slices" in said and "100 epochs" in said and "store: 34.2 GB" in said
    # each line is predicted by what the other reached: 1000 * 0.4 against 500
    assert "NVIDIA H100 80GB HBM3 a 64x64: predicted 400, measured 500 images/s, ratio 0.80; by the data sheet" in said


def test_a_plan_without_gpu_lines_says_how_little_it_knows(tmp_path, capsys):
    said = planned(tmp_path, capsys, measured(0.5, precision="fp32", gpu=None))
    assert "no GPU was measured, and the share of a CPU says little about it" in said
    assert "no other line to predict it from" in said


def test_the_plan_stands_beside_what_the_poster_s_author_measured():
    rows = plan.measured_rows([measured(0.4), measured(0.5, variant="b")])
    one, four = plan.against_the_poster(rows)
    low, high = (rate for rate, _ in plan.predicted_rates(plan.Args(gpu="A100", batch_size=64), rows).values())
    assert high / low == pytest.approx(0.5 / 0.4)
    assert one.endswith(f"theirs about 72 images/s, ours PREDICTED {low / 72:.1f} .. {high / 72:.1f} times that")
    assert "4 x A100: theirs about 227 images/s" in four


def test_gradients_travel_round_a_ring():
    # 4 GPUs: 2 * 3 / 4 of 700 MB at 0.7 of 1 GB/s
    assert plan.all_reduce_s(7e8, 4, 1e9) == pytest.approx(1.5)
    assert plan.all_reduce_s(7e8, 1, 1e9) == 0


def test_a_gpu_without_a_data_sheet_is_refused():
    with pytest.raises(InputError, match="gpu=H300: choose one of A6000"):
        plan.Args(gpu="H300")
    assert short_name("NVIDIA H100 80GB HBM3") == "H100" and short_name("NVIDIA RTX A6000") == "A6000"
    for other in ("Tesla V100-SXM2-16GB", "NVIDIA H100 PCIe", "NVIDIA H100 80GB HBM3 MIG 1g.10gb"):
        assert short_name(other) is None
