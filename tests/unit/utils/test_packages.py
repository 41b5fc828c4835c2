"""An optional package that is missing, or installed and broken: one message with the true reason."""

import importlib

import pytest

from kits_dist.utils.errors import InputError, MissingPackage
from kits_dist.utils.packages import optional_package, why_missing

BROKEN = {  # what the package's own __init__ does -> the reason
    "import a_dependency_of_it": "ModuleNotFoundError: No module named 'a_dependency_of_it'",
    "from optional_and_broken import core": "ImportError: cannot import name 'core' from",
    "import ctypes; ctypes.CDLL('libnowhere.so.7')": "OSError: libnowhere.so.7: cannot open shared object file",
    "import numpy; numpy.float_": r"AttributeError: .*float_.* was removed",
    "raise ValueError('numpy.dtype size changed')": "ValueError: numpy.dtype size changed",
}


def load(name):
    with optional_package(name, "peers=this needs it", "pip install it"):
        importlib.import_module(name)


@pytest.mark.parametrize("source", BROKEN)
def test_a_package_whose_own_import_fails_is_missing_with_its_reason(tmp_path, monkeypatch, source):
    (tmp_path / "optional_and_broken").mkdir()
    (tmp_path / "optional_and_broken" / "__init__.py").write_text(source + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    expected = rf"peers=this needs it, which is installed but does not work here \({BROKEN[source]}.*\). pip install it"
    with pytest.raises(MissingPackage, match=expected):
        load("optional_and_broken")


def test_a_package_that_is_not_there_is_not_called_broken():
    with pytest.raises(MissingPackage, match="which is not installed. pip install it"):
        load("a_package_of_nowhere")
    parent = ModuleNotFoundError("No module named 'nvidia'", name="nvidia")
    assert why_missing(parent, "nvidia.dali") == "is not installed"
    other = ModuleNotFoundError("No module named 'nvidia.dal'", name="nvidia.dal")  # a name that only begins like it
    assert why_missing(other, "nvidia.dali").startswith("is installed but")


def test_our_own_messages_pass():
    with pytest.raises(InputError, match="^ours$"), optional_package("numpy", "x", "y"):
        raise InputError("ours")
