"""What the README says is what the code does, as far as text can show."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
SOURCE = "\n".join(path.read_text() for path in sorted((ROOT / "kits_dist").rglob("*.py")))
SAID = re.sub(r'"\s*\n\s*f?"', "", SOURCE)  # messages that the source breaks over lines

TABLE = README.split("## When something goes wrong")[1].split("Exit codes")[0]
MESSAGES = re.findall(r"^\| `(.+?)` \|", TABLE, flags=re.M)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_of_the_table_stands_in_the_source(message):
    """Its longest piece without values: what is left between numbers, names of cases and files, and `...`."""
    pieces = re.split(
        r"\.\.\.|case_\S+|\S*[/=]\S*|\b\d\S*|\b(?:has no label|phantom|kits|inductor|false|data\.context)\b", message
    )
    longest = max((piece.strip(" ,:()") for piece in pieces), key=len)
    assert len(longest) > 8 and longest in SAID


def test_every_file_that_the_readme_names_is_there():
    named = set(re.findall(r"\b(?:launch|configs|benchmarks|tests)/[\w/]+\.(?:sh|yaml|py|md|png|txt)", README))
    assert len(named) > 8
    assert not [name for name in sorted(named) if not (ROOT / name).exists()]


def test_the_file_map_names_every_module():
    map_of_files = README.split("## File map")[1].split("## Where does")[0]
    modules = {path.stem for path in (ROOT / "kits_dist").rglob("*.py")} - {"__init__", "__main__"}
    folders = {path.stem for path in (ROOT / "kits_dist" / "machine").glob("*.py")}
    missing = [name for name in sorted(modules - folders) if not re.search(rf"\b{name}\b", map_of_files)]
    assert [name for name in missing if not name.startswith("phantom_")] == []
