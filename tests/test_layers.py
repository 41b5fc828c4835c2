"""The floors of the house, drawn from the source: programs > assembly > builders > parts > ground; imports only go
down.

A module may import from floors below, and from neighbours on its own floor only inside its own folder. See README.
"""

import ast
from pathlib import Path

import kits_dist

ROOT = Path(kits_dist.__file__).parent
FLOORS = {
    "ground": {
        *("errors", "cli", "config", "labels", "batch", "files", "parallel", "pipeline", "pieces", "launcher", "ranks"),
        *("process_group", "runtime", "environment", "signals", "peaks"),
    },
    "parts": {
        *("losses", "metrics", "surfaces", "lesions", "bootstrap", "schedule", "averaging", "checkpoint", "tracking"),
        *("profiling", "monitors", "mfu", "drawing", "rendering", "cleaning", "findings", "machine"),
        *("data.*", "models.*"),
    },
    "builders": {"data", "models"},  # their __init__: names in the configuration -> a loader, a network
    "assembly": {
        *("training", "training.*", "inference", "inference.*"),
        *("held_out", "evaluation", "summary", "tables", "figures", "comparison", "folds"),
    },
    "programs": {
        *("phantom", "audit", "prepare", "train", "evaluate", "postprocess", "fuse", "crossval", "predict", "report"),
        "doctor",
        "__main__",
    },
}
ORDER = list(FLOORS)


def floor_of(module: str) -> int:
    head, _, rest = module.partition(".")
    name = f"{head}.*" if rest and head in ("data", "models", "inference", "training") else head
    found = [floor for floor, names in FLOORS.items() if name in names]
    assert len(found) == 1, f"kits_dist.{module} stands on no floor: name it in tests/test_layers.py"
    return ORDER.index(found[0])


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    """Modules of kits_dist that the file imports, at its top or inside a function; not those for type checkers only."""
    tree = ast.parse(path.read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    known, names = modules(), set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kits_dist":
            base = node.module.partition(".")[2]
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                names.add(inner if inner in known else base)
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("kits_dist.")}
    return names - {""}


def surprises() -> list[str]:
    found = []
    for name, path in modules().items():
        for used in imports(path):
            same_folder = "." in name + used and name.split(".")[0] == used.split(".")[0]
            ground = floor_of(name) == floor_of(used) == 0
            if not (floor_of(used) < floor_of(name) or same_folder or ground):
                found.append(
                    f"kits_dist.{name} ({ORDER[floor_of(name)]}) -> kits_dist.{used} ({ORDER[floor_of(used)]})"
                )
    return found


def test_imports_only_go_down():
    assert surprises() == []


def test_an_arrow_upwards_would_be_seen(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from kits_dist import train\nfrom kits_dist.data.store import Store\nimport kits_dist.held_out\n")
    assert imports(bad) == {"train", "data.store", "held_out"}


def test_importing_the_package_loads_neither_torch_nor_dali():
    import subprocess
    import sys

    code = "import kits_dist.prepare, sys; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
