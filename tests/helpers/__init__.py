"""What tests share: where this checkout and the real data lie, processes, clusters, programs run under a launcher."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("KITS_DATA", ROOT.parent / "shared" / "data"))
