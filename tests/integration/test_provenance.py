"""The commit that a run records is that of this code, or none."""

import os
import shutil
import subprocess
import sys

import pytest

from kits_dist.utils.environment import commit
from tests.helpers import ROOT

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]


def recorded(package_root) -> str:
    """What the package at this place says of itself."""
    code = "from kits_dist.utils.environment import commit; print(commit()['commit'])"
    environment = os.environ | {"PYTHONPATH": str(package_root)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=package_root
    ).stdout.strip()


@pytest.fixture
def project(tmp_path):
    """A repository of somebody else's."""
    subprocess.run([*GIT, "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "theirs.py").write_text("")
    (tmp_path / ".gitignore").write_text(".venv\n")
    subprocess.run([*GIT, "add", "."], check=True, cwd=tmp_path)
    subprocess.run([*GIT, "commit", "-qm", "mine"], check=True, cwd=tmp_path)
    return tmp_path


def test_a_package_inside_another_projects_checkout_has_no_commit(project):
    where = ".venv/lib/site-packages"
    shutil.copytree(ROOT / "kits_dist", project / where / "kits_dist", ignore=shutil.ignore_patterns("__pycache__"))
    assert recorded(project / where) == "None"


def test_a_checkout_has_its_own():
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, cwd=ROOT)
    if head.returncode:
        pytest.skip("this is no checkout")
    assert commit()["commit"] == head.stdout.strip()
