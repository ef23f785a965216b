"""Write the golden curves anew, after a change that is meant to have a numeric effect: python -m tests.golden."""

import json
import shutil
import tempfile
from pathlib import Path

from tests import golden


def main() -> None:
    """The dataset only where it is missing: remove the folder after a change of the format."""
    with tempfile.TemporaryDirectory() as temporary:
        if not golden.DATASET.exists():
            made = golden.make_dataset(Path(temporary))
            for part in ("index.json", "snapshots", "shards"):
                golden.DATASET.mkdir(exist_ok=True)
                (shutil.copytree if (made / part).is_dir() else shutil.copy)(made / part, golden.DATASET / part)
        curves = {stream: golden.losses(stream, Path(temporary) / stream) for stream in ("rgb", "flow")}
    golden.LOSSES.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
