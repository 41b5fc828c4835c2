"""A GPU machine without a network gets wheels in a bundle: it must hold what the machine's image lacks."""

import re
import tomllib

import pytest

from tests.helpers import ROOT

BUNDLE = ROOT.parent / "shared" / "tools" / "offline_bundle.sh"
IMAGE = {  # of such a machine, with Python 3.12 and torch for CUDA 13
    *("torch", "accelerate", "tensorboard", "timm"),
    *("numpy", "scipy", "numba", "opencv-python-headless"),
    *("safetensors", "pillow", "tqdm", "jinja2"),  # needed by the above
    "nvidia-ml-py",  # expected: without it torch cannot tell a GPU's utilization, and a training logs none
}
OF_DALI = {"optree", "gast", "astunparse"}  # its own dependencies: wheels are fetched without theirs


def names(requirements: list[str]) -> set[str]:
    """Return names without versions, in lower case."""
    return {re.match(r"[\w.-]+", requirement)[0].lower() for requirement in requirements}


@pytest.mark.skipif(not BUNDLE.exists(), reason="needs ../shared/tools/offline_bundle.sh")
def test_image_and_bundle_hold_every_dependency():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = names([*project["dependencies"], *project["optional-dependencies"]["dali-cuda13"]])
    (line,) = re.findall(r"^#   (nvidia-dali-cuda\S+ .*)$", BUNDLE.read_text(), flags=re.M)
    bundled = names(line.split())
    assert needed - IMAGE <= bundled, "name it in the header of the bundle, or in IMAGE where the image has it"
    assert bundled - OF_DALI <= needed, "the bundle holds what nothing needs any more"
