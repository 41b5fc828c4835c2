"""What the READMEs name exists, and the Python example of the first page runs."""

import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import torch

from kits_dist import cli
from kits_dist.config import Config, as_plain
from kits_dist.models import build_model, weights
from tests.unit.test_layers import LAYERS

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kits_dist", "launch", "configs", "benchmarks", "tests")
READMES = [ROOT / "README.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("README.md")))]
ROOTS = tuple(f"{folder}/" for folder in FOLDERS)
ENDINGS = (".py", ".sh", ".md", ".yml", ".yaml")
PLACEHOLDERS = re.compile(r"NAME|FILE|FOLDER|MODULE|\*")  # to be replaced by the reader
REGIONS = "model.regions=[kidney_and_mass,mass,tumor]"
FILES_OF_A_RUN = {"config.yaml"}

each_readme = pytest.mark.parametrize("path", READMES, ids=lambda path: str(path.relative_to(ROOT)))


def keys_of(schema: type, prefix: str = "") -> set[str]:
    """Return the names of all fields, those of nested dataclasses with a dot."""
    keys = set()
    for field in dataclasses.fields(schema):
        keys.add(prefix + field.name)
        if isinstance(field.default_factory, type):
            keys |= keys_of(field.default_factory, f"{prefix}{field.name}.")
    return keys


CONFIG_KEYS = keys_of(Config)
OTHER_SUFFIXES = {"py", "txt", "jsonl", "safetensors", "apply"}  # of files, and of a function in benchmarks/README.md


def program(module: str) -> set[str]:
    """Return the arguments that `python -m MODULE` takes."""
    return CONFIG_KEYS | {"config"} if module == "kits_dist.train" else keys_of(importlib.import_module(module).Args)


def wrong_commands(text: str) -> list[str]:
    """Return what the commands of a text name and does not exist: programs, and arguments of programs."""
    wrong = []
    for command in text.replace("\\\n", " ").splitlines():
        found = re.search(r"-m (?P<module>(?:kits_dist|benchmarks)(?:\.\w+)+)(?P<arguments>[^`#|]*)", command)
        if not found or PLACEHOLDERS.search(found["module"]):
            continue
        try:
            known = program(found["module"])
        except (ModuleNotFoundError, AttributeError):
            wrong.append(found["module"])
            continue
        names = re.findall(r"(?:^|\s)([a-z_.]+)=", found["arguments"])
        wrong += [f"{found['module']} {name}=" for name in names if name not in known]
    return wrong


def missing_paths(text: str, folder: Path) -> list[str]:
    """Return the files and folders that a text names and that do not exist, from the root or from its own folder.

    A bare file name may also be that of a file further down.
    """
    words = {word.rstrip(".") for word in re.findall(r"[\w./*-]+", text)}
    paths = {word for word in words if word.startswith(ROOTS) or word.endswith(ENDINGS)}
    paths = {path for path in paths if not PLACEHOLDERS.search(path)} - FILES_OF_A_RUN
    places = {path: (ROOT / path, folder / path, *(folder.rglob(path) if "/" not in path else ())) for path in paths}
    return sorted(path for path, candidates in places.items() if not any(one.exists() for one in candidates))


def missing_keys(text: str) -> list[str]:
    """Return the configuration keys that a text names and that do not exist."""
    groups = "|".join({key.split(".")[0] for key in CONFIG_KEYS if "." in key})
    named = set(re.findall(rf"(?<![\w/.])(?:{groups})\.[a-z_]+\b", text))
    return sorted(key for key in named - CONFIG_KEYS if key.split(".")[1] not in OTHER_SUFFIXES)


@each_readme
def test_every_path_that_a_readme_names_exists(path):
    assert missing_paths(path.read_text(), path.parent) == []


@each_readme
def test_every_program_that_a_readme_names_takes_the_arguments_it_names(path):
    text = path.read_text()
    modules = set(re.findall(r"`(kits_dist(?:\.\w+)+)`", text))
    assert wrong_commands(text) == []
    assert [name for name in sorted(modules) if not (ROOT / name.replace(".", "/")).with_suffix(".py").exists()] == []


@each_readme
def test_every_configuration_key_that_a_readme_names_exists(path):
    assert missing_keys(path.read_text()) == []


def test_what_does_not_exist_is_found():
    assert missing_paths("`launch/absent.sh`, [a](tests/absent/) and kits_dist/absent", ROOT) == [
        "kits_dist/absent",
        "launch/absent.sh",
        "tests/absent/",
    ]
    assert wrong_commands("python -m kits_dist.absent x=1\npython -m kits_dist.predict run=a in=b") == [
        "kits_dist.absent",
        "kits_dist.predict in=",
    ]
    assert missing_keys("optim.lr=1 and `optim.rate`") == ["optim.rate"]


def test_the_first_page_is_short_and_lists_every_folder_of_the_package():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    folders = [path.name for path in (ROOT / "kits_dist").iterdir() if (path / "__init__.py").exists()]
    assert [name for name in folders if f"kits_dist/{name}/" not in text] == []


def test_the_package_readme_draws_the_layers_that_the_imports_obey():
    text = (ROOT / "kits_dist" / "README.md").read_text()
    drawn = re.search(r"```\nprograms\n(.*?)```", text, flags=re.S)[1].splitlines()
    assert [set(line.split()) for line in reversed(drawn)] == LAYERS


def test_the_package_readme_lists_every_program():
    text = (ROOT / "kits_dist" / "README.md").read_text()
    programs = {path.stem for path in (ROOT / "kits_dist").glob("*.py")} - {"__init__", "__main__"}
    assert [name for name in sorted(programs) if f"`{name}`" not in text] == []


def test_the_python_example_runs(raw, store, tmp_path, monkeypatch, capsys):
    """On six tiny cases, with an untrained network in the place of the demo's."""
    demo = tmp_path / "runs" / "demo"
    (demo / "run").mkdir(parents=True)
    (demo / "raw").symlink_to(raw)
    (demo / "store").symlink_to(store.path)
    config = cli.load(
        Config,
        ["run=r", f"data.store={store.path}", "data.size_px=64x96", "model.arch=simple_unet", "model.width=2", REGIONS],
    )
    about = {"config": as_plain(config), "window_hu": list(store.window), "data": "phantom", "trained_on_voxels": []}
    about |= {"normalization": store.normalization(0)._asdict(), "step": 1}
    torch.manual_seed(0)
    weights.export(demo / "run" / "model.safetensors", build_model(config.model, 1).state_dict(), about)

    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example, names)

    assert names["batch"].image.shape == (8, 1, 96, 128) and names["batch"].label.shape == (8, 96, 128)
    assert names["predicted"].shape == names["truth"].shape == names["scan"].array.shape
    dice, surface_dice = (float(figure) for figure in capsys.readouterr().out.split())
    assert 0 <= dice <= 1 and 0 <= surface_dice <= 1
