"""Shared by tests: paths of this checkout and of the real data, processes, clusters, programs for a launcher."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KITS_DATA", ROOT.parent / "shared" / "data"))
