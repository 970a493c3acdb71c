"""An installed copy has all that this tree has: the wheel is built as for anybody else, but for the part in C."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PIP = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
COPIED = ["src", "csrc", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"]


@pytest.mark.slow
def test_a_wheel_has_every_file_of_the_package(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    without = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info", "build")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=without)
        else:
            shutil.copy(ROOT / name, tree)
    expected = {str(path.relative_to(tree / "src")) for path in (tree / "src").rglob("*") if path.is_file()}
    built = subprocess.run(
        [sys.executable, "-m", "pip", *PIP, "--wheel-dir", str(tmp_path), str(tree)],
        env={**os.environ, "CC": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as found:
        assert expected - set(found.namelist()) == set()
