"""A built wheel holds everything, works from an empty folder, and puts one name into site-packages."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from console import PACKAGE

ROOT = PACKAGE.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a checkout"),
    pytest.mark.skipif(importlib.util.find_spec("scikit_build_core") is None, reason="no scikit-build-core here"),
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = ["--config-settings", f"build-dir={folder / 'build'}"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", *build]
    done = subprocess.run([*command, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("edgemoe-*.whl")
    assert "-py3-none-" in file.name  # one wheel a platform, for every Python
    zipfile.ZipFile(file).extractall(folder / "site")
    return folder / "site"


def test_only_edgemoe_is_installed(wheel: Path) -> None:
    assert {path.name.split("-")[0] for path in wheel.iterdir()} == {"edgemoe"}


def test_symlinked_folders_library_and_data_are_real_files(wheel: Path) -> None:
    package = wheel / "edgemoe"
    for name in ("converters", "runtime", "devices"):
        assert not (package / name).is_symlink()
        assert (package / name / "__init__.py").is_file()
    assert [path.stem for path in (package / "lib").iterdir()] == ["libedgemoe"]
    assert (package / "bench" / "passage.txt").is_file()
    assert {path.name for path in (package / "serve" / "page").iterdir()} == {"index.html", "page.css", "page.js"}
    assert (package / "py.typed").is_file()


def test_it_runs_from_an_empty_folder(wheel: Path, good: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    program = (
        "import importlib.util, edgemoe, sys\n"
        "assert importlib.util.find_spec('converters') is None\n"
        "from edgemoe.cli import main\n"
        "main(['inspect', sys.argv[1]])\n"
    )
    # PYTHONPATH comes before an editable install's finder only for what it names; -S leaves that finder out.
    site = importlib.util.find_spec("numpy").submodule_search_locations[0]  # type: ignore[union-attr,index]
    path = os.pathsep.join([str(wheel), str(Path(site).parent)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", program, str(good)],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "smallest budget" in done.stdout
