"""Imports go down only: each folder of `kits_dist` imports from the folders below it, and from itself."""

import ast
from pathlib import Path

import kits_dist

ROOT = Path(kits_dist.__file__).parent
LAYERS = [  # the lowest first; folders of one layer do not know each other
    {"utils"},
    {"labels"},
    {"config"},
    {"imaging", "distributed"},
    {"cli"},
    {"data", "models", "synthetic"},
    {"inference", "figures"},
    {"training", "evaluation", "diagnostics"},
]
ALLOWED = {"training -> evaluation.metrics"}  # validation counts Dice the way the evaluator does
PROGRAMS = len(LAYERS)  # every other module at the root: imported by nobody but __main__


def layer_of(name: str) -> int:
    return next((number for number, names in enumerate(LAYERS) if name in names), PROGRAMS)


def arrows(path: Path) -> list[tuple[str, str]]:
    """(folder or module of the importing file, what it imports below kits_dist), wherever in the file."""
    me = path.relative_to(ROOT).parts[0].removesuffix(".py")
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kits_dist":
            base = node.module.split(".")[1:]
            found += [(me, ".".join([*base, alias.name])) for alias in node.names]
        if isinstance(node, ast.Import):
            found += [(me, alias.name.partition(".")[2]) for alias in node.names if alias.name.startswith("kits_dist.")]
    return found


def upward(path: Path) -> list[str]:
    """The arrows of one file that do not go down."""
    found = []
    for me, used in arrows(path):
        folder = used.split(".")[0]
        if folder in (me, "__version__") or f"{me} -> {'.'.join(used.split('.')[:2])}" in ALLOWED:
            continue
        if layer_of(folder) >= layer_of(me):
            found.append(f"{path.relative_to(ROOT)} -> kits_dist.{used}")
    return found


def test_imports_go_down_only():
    assert [arrow for path in sorted(ROOT.rglob("*.py")) for arrow in upward(path)] == []


def test_an_arrow_upward_or_sideways_is_seen():
    planted = ROOT / "data" / "planted.py"  # never written: only its place counts
    source = "from kits_dist.models import build_model\nfrom kits_dist import train\nimport kits_dist.utils.files\n"
    real = Path.read_text
    try:
        Path.read_text = lambda path, *a, **k: source if path == planted else real(path, *a, **k)
        assert upward(planted) == [
            "data/planted.py -> kits_dist.models.build_model",
            "data/planted.py -> kits_dist.train",
        ]
    finally:
        Path.read_text = real


def test_the_root_holds_programs_and_nothing_else():
    names = {path.stem for path in ROOT.glob("*.py")}
    assert len(names) <= 18
    for name in names - {
        "__init__",
        "__main__",
        "config",
        "labels",
        "cli",
        "launch",
    }:  # launch takes options of accelerate
        assert "cli.run(main, Args)" in (ROOT / f"{name}.py").read_text().replace("Config)", "Args)"), name
