"""The built wheel holds the package alone, and its command answers in an environment without this checkout."""

import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

from tests.helpers import ROOT

pytestmark = pytest.mark.slow


def pip(*words: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, words)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=300)


def test_the_command_of_an_installed_wheel_answers_help(tmp_path):
    pip("wheel", ".", "--no-deps", "--no-build-isolation", "-w", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"kits_dist"}
    assert {"kits_dist/py.typed", "kits_dist/figures/report.html.j2"} <= set(names)

    # an environment of its own that finds the dependencies, but not this checkout, in the environment of the tests
    venv.create(tmp_path / "clean", with_pip=False)
    python = tmp_path / "clean" / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (tmp_path / "clean" / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    where = subprocess.check_output(
        [python, "-c", "import kits_dist; print(kits_dist.__file__)"], cwd=tmp_path, text=True
    )
    assert where.startswith(str(site))
    command = [tmp_path / "clean" / "bin" / "kits-dist", "train", "help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "optim.lr" in done.stdout, done.stderr
