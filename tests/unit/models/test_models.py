import hashlib
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file

from kits_dist.config import ModelConfig
from kits_dist.models import build_model, encoders, weights
from kits_dist.utils.errors import InputError, MissingInput

REGIONS = ("kidney_and_mass", "tumor")


@pytest.mark.parametrize(("arch", "encoder"), [("simple_unet", "-"), ("unet", "resnet18"), ("fpn", "mobilenet_v2")])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_region_logits_out(arch, encoder, channels):
    model = build_model(
        ModelConfig(arch, encoder, "none", 64 if arch == "fpn" else 4, regions=REGIONS), channels
    ).eval()
    out = model(torch.zeros(2, channels, 64, 96))
    assert out.shape == (2, 2, 64, 96) and out.dtype == torch.float32


def test_the_posters_network_has_its_published_size():
    model = build_model(ModelConfig("unet", "resnet34", "none", regions=("kidney_and_mass", "mass", "tumor")), 1)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(24.43, abs=0.01)


@pytest.mark.parametrize(("arch", "encoder"), [("simple_unet", "-"), ("unet", "resnet18"), ("fpn", "mobilenet_v2")])
def test_an_untrained_network_begins_at_the_prior(arch, encoder):
    width = 8 if arch == "simple_unet" else 64
    config = ModelConfig(arch, encoder, "none", width, REGIONS)
    head = [m for m in build_model(config, 1).modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert head.out_channels == 2 and head.bias.sigmoid().tolist() == pytest.approx([0.01, 0.01])
    free = [m for m in build_model(replace(config, prior=0.5), 1).modules() if isinstance(m, torch.nn.Conv2d)][-1]
    assert (free.bias.sigmoid() > 0.2).all()


def test_a_narrower_resnet_keeps_its_layers():
    config = ModelConfig(encoder_weights="none", width=16)
    narrow, full = (build_model(replace(config, width=width), 1) for width in (16, 64))
    convolutions = [sum(isinstance(m, torch.nn.Conv2d) for m in model.encoder.modules()) for model in (narrow, full)]
    assert convolutions == [37, 36]  # where the first stage leaves the 64 channels of the stem
    sizes = [sum(p.numel() for p in model.parameters()) for model in (narrow, full)]
    assert 14 < sizes[1] / sizes[0] < 16.5  # the width squared
    assert narrow(torch.zeros(2, 1, 64, 64)).shape == (2, 1, 64, 64)
    for wrong in ({"encoder": "efficientnet-b0"}, {"arch": "fpn"}, {"encoder_weights": "imagenet"}):
        with pytest.raises(InputError, match="model.width=16: only simple_unet"):
            build_model(replace(config, **wrong), 1)


def test_unknown_names_are_answered_with_the_choices():
    with pytest.raises(InputError, match="model.arch='unett': choose one of simple_unet, deeplabv3"):
        build_model(ModelConfig("unett", "resnet18", "none"), 1)
    with pytest.raises(InputError, match="model.encoder='resnet19': choose one of .*resnet18"):
        build_model(ModelConfig("unet", "resnet19", "none"), 1)


def weights_file(tmp_path, suffix=".safetensors", extra=None):
    """What torchvision publishes: three input channels and a classifier."""
    model = build_model(ModelConfig("unet", "resnet18", "none"), 3)
    state = {k: v.clone() for k, v in model.encoder.state_dict().items()} | {
        "fc.weight": torch.zeros(10, 512),
        "fc.bias": torch.zeros(10),
    }
    state |= extra or {}
    path = tmp_path / f"resnet18{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    return path, state


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_state_dict_loads_and_identical_neighbors_give_the_output_of_one_slice(tmp_path, suffix):
    path, state = weights_file(tmp_path, suffix)
    one, three = (build_model(ModelConfig("unet", "resnet18", str(path)), c).encoder.eval() for c in (1, 3))
    assert torch.equal(one.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(one(image)[-1], three(image.expand(1, 3, 64, 64))[-1], atol=1e-4)
    gray = torch.nn.functional.conv2d(image.expand(1, 3, 64, 64), state["conv1.weight"], stride=2, padding=3)
    assert torch.allclose(one.conv1(image), gray, atol=1e-4)


def test_files_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="no such file"):
        build_model(ModelConfig("unet", "resnet18", str(tmp_path / "no.pth")), 1)
    path, _ = weights_file(tmp_path)
    with pytest.raises(
        InputError,
        match="not the weights of resnet34. First missing key: layer1.2.conv1.weight; first unexpected key: none",
    ):
        build_model(ModelConfig("unet", "resnet34", str(path)), 1)
    path, _ = weights_file(tmp_path, extra={"surplus": torch.zeros(1)})
    with pytest.raises(InputError, match="first unexpected key: surplus"):
        build_model(ModelConfig("unet", "resnet18", str(path)), 1)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(InputError, match="not a safetensors file"):
        build_model(ModelConfig("unet", "resnet18", str(path)), 1)


class Evil:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(InputError, match="not a readable state dict"):
        build_model(ModelConfig("unet", "resnet18", str(tmp_path / "evil.pth")), 1)
    assert "code ran" not in capsys.readouterr().out


def test_imagenet_out_of_reach_fails_in_seconds_with_what_to_do(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda **_: None)
    with pytest.raises(
        MissingInput, match="cannot reach the weights .*model.encoder_weights=PATH.*model.encoder_weights=none"
    ):
        build_model(ModelConfig("unet", "resnet18", "imagenet"), 1)
    assert encoders.REACH_TIMEOUT_S <= 5
    with pytest.raises(InputError, match="there are none for"):
        encoders._imagenet_file("nothing")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Serve hub.content under every name from this machine; hub.asked lists the requests."""
    import huggingface_hub

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            if "/resnet18.imagenet/resolve/" not in self.path:
                self.send_error(404)
                return False
            server.asked.append((self.command, self.path))
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.content)))
            self.send_header("ETag", f'"{hashlib.sha256(server.content).hexdigest()}"')
            self.send_header("X-Repo-Commit", self.path.split("/")[4])
            self.end_headers()
            return True

        def do_GET(self):
            if self.do_HEAD():
                self.wfile.write(server.content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.content = [], b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here, constants = f"http://127.0.0.1:{server.server_port}", huggingface_hub.constants
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield server
    server.shutdown()


def test_imagenet_weights_are_downloaded_once(hub, tmp_path):
    path, state = weights_file(tmp_path)
    hub.content = path.read_bytes()
    config = ModelConfig("unet", "resnet18", "imagenet")
    model = build_model(config, 1)
    assert torch.equal(model.encoder.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])
    assert {command for command, _ in hub.asked} == {"HEAD", "GET"}
    hub.asked.clear()
    build_model(config, 1)
    assert hub.asked == []


def test_a_hub_that_serves_something_else_is_refused(hub):
    hub.content = b"<html>please log in</html>"
    with pytest.raises(InputError, match="not a safetensors file"):
        build_model(ModelConfig("unet", "resnet18", "imagenet"), 1)


@pytest.mark.parametrize("metadata", [None, {"kits_dist": '{"a": "\u00e9"}'}])
def test_our_files_are_byte_for_byte_those_of_the_safetensors_library(tmp_path, metadata):
    tensors = {
        f"{number}.{dtype}".replace("torch.", ""): torch.arange(number).to(dtype)
        for dtype in weights._DTYPES
        for number in (3, 1, 0)
    }
    tensors |= {"scalar": torch.tensor(2.5), "turned": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    digest = weights.write_tensors(tmp_path / "ours", tensors, metadata)
    content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata)
    assert (tmp_path / "ours").read_bytes() == content and digest == hashlib.sha256(content).hexdigest()
