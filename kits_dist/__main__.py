"""`kits-dist VERB key=value ...` is `python -m kits_dist.VERB key=value ...`."""

import ast
import runpy
import sys
from pathlib import Path

VERBS = (
    *("phantom", "audit", "prepare", "train", "evaluate", "postprocess", "fuse", "crossval", "predict", "report"),
    "doctor",
)


def main() -> None:
    """Run the program that the first argument names; without one, list the programs."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "help"
    if verb in VERBS:
        sys.argv = [f"kits-dist {verb}", *sys.argv[2:]]
        runpy.run_module(f"kits_dist.{verb}", run_name="__main__", alter_sys=True)
        return
    asked = verb in ("help", "--help", "-h")
    lines = [f"  {name:<11} {_first_line(name)}" for name in VERBS]
    text = "usage: kits-dist VERB key=value ...     kits-dist VERB help\n\n" + "\n".join(lines)
    if not asked:
        text = f"kits-dist: unknown verb {verb!r}.\n{text}"
    print(text, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def _first_line(verb: str) -> str:
    # Read, not imported: importing torch takes seconds.
    source = (Path(__file__).parent / f"{verb}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0].split(": `")[0]


if __name__ == "__main__":
    main()
