"""`kits-dist PROGRAM key=value ...` is `python -m kits_dist.PROGRAM key=value ...`."""

import ast
import runpy
import sys
from pathlib import Path

from kits_dist.utils.output import protect_output

PROGRAMS = [
    *("phantom", "audit", "prepare", "train", "evaluate", "postprocess", "fuse", "crossval", "predict", "report"),
    *("doctor", "launch"),
]


def main() -> None:
    """Run the program that the first argument names; without one, list the programs."""
    program = sys.argv[1] if len(sys.argv) > 1 else "help"
    if program in PROGRAMS:
        sys.argv = [f"kits-dist {program}", *sys.argv[2:]]
        runpy.run_module(f"kits_dist.{program}", run_name="__main__", alter_sys=True)
        return
    protect_output()
    asked = program in ("help", "--help", "-h")
    lines = [f"  {name:<11} {_first_line(name)}" for name in PROGRAMS]
    text = "usage: kits-dist PROGRAM key=value ...     kits-dist PROGRAM help\n\n" + "\n".join(lines)
    if not asked:
        text = f"kits-dist: unknown program {program!r}.\n{text}"
    print(text, file=sys.stdout if asked else sys.stderr)
    sys.exit(0 if asked else 2)


def _first_line(program: str) -> str:
    # Read, not imported: importing torch takes seconds.
    source = (Path(__file__).parent / f"{program}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0].split(": `")[0]


if __name__ == "__main__":
    main()
