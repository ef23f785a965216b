"""The direction of imports: pipeline → flow, manifests; train → model, flow, manifests and some of pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("manifests", "flow", "model", "pipeline", "train")
MAY_IMPORT = {
    "manifests": set(),
    "flow": set(),
    "model": set(),
    "pipeline": {"flow", "manifests"},
    "train": {"model", "flow", "manifests", "pipeline.video", "pipeline.fetch", "pipeline.youtube"},
}


def imported(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room):
    for file in (ROOT / room).glob("**/*.py"):
        for name in imported(file):
            other = name.split(".")[0]
            if other in ROOMS and other != room:
                allowed = other in MAY_IMPORT[room] or name in MAY_IMPORT[room]
                assert allowed, f"{file.relative_to(ROOT)} imports {name}"


def test_manifests_need_only_numpy():
    files = {file.name: imported(file) for file in (ROOT / "manifests").glob("*.py")}
    roots = {
        file: {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) for file, names in files.items()
    }
    assert roots.pop("storage.py") == {
        "upath"
    }  # which opens buckets; no other room of the house says where data may lie
    assert set().union(*roots.values()) == {"manifests", "numpy"}
    assert not [file for file, names in files.items() if "manifests.storage" in names]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("train.cli", "apache_beam"),
        ("train.predict_command", "apache_beam"),
        ("manifests.lists", "torch"),
        ("pipeline.cli", "torch"),
    ],
)
def test_what_stays_outside(module, unwanted):
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0


def test_the_whole_beam_pipeline_stands_in_one_file():
    users = {file.name for file in ROOT.glob("pipeline/*.py") if any("apache_beam" in n for n in imported(file))}
    assert users == {"prep.py", "run.py", "runners.py"}
