"""A built wheel holds everything, works from an empty folder, and puts one name into site-packages."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from console import PACKAGE

from edgemoe.places import BUILTIN, builtin_path
from edgemoe.serve.guard import PAGE

ROOT = PACKAGE.parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a checkout"),
    pytest.mark.skipif(importlib.util.find_spec("scikit_build_core") is None, reason="no scikit-build-core here"),
]


def build(folder: Path, python: str | Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--python", str(python), "wheel", "--quiet", "--no-deps", *options]
    place = ["--config-settings", f"build-dir={folder / 'build'}", "--wheel-dir", str(folder)]
    return subprocess.run([*command, *place, str(ROOT)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's contents, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    done = build(folder, sys.executable, "--no-build-isolation")
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("edgemoe-*.whl")
    assert "-py3-none-" in file.name  # one wheel a platform, for every Python
    zipfile.ZipFile(file).extractall(folder / "site")
    return folder / "site"


def test_pip_builds_it_in_a_new_environment(tmp_path: Path) -> None:
    """As `pip install .` does: llama-cpp-python is then neither installed nor beside the build backend."""
    venv.create(tmp_path / "venv")
    done = build(tmp_path, tmp_path / "venv" / "bin" / "python")
    if "No matching distribution found" in done.stderr:
        pytest.skip("pip has no index here, or that lacks what the build requires")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("edgemoe-*-py3-none-*.whl"))


def test_only_edgemoe_is_installed(wheel: Path) -> None:
    assert {path.name.split("-")[0] for path in wheel.iterdir()} == {"edgemoe"}


def test_symlinked_folders_library_and_data_are_real_files(wheel: Path) -> None:
    package = wheel / "edgemoe"
    for name in ("converters", "runtime", "devices"):
        assert not (package / name).is_symlink()
        assert (package / name / "__init__.py").is_file()
    assert [path.stem for path in (package / "lib").iterdir()] == ["libedgemoe"]
    assert (package / "bench" / "passage.txt").is_file() and (package / "quality" / "tasks.jsonl").is_file()
    page = package / "serve" / "page"
    assert all((page / name).is_file() for name in PAGE.values())
    assert {path.name for path in (page / "lib").glob("*.LICENSE")} == {"marked.LICENSE", "purify.LICENSE"}
    assert (package / "py.typed").is_file()


@pytest.mark.skipif(builtin_path() is None, reason=f"edgemoe/models/{BUILTIN}.gguf is not in this checkout")
def test_the_built_in_model_travels_in_it(wheel: Path) -> None:
    inside = wheel / "edgemoe" / "models" / f"{BUILTIN}.gguf"
    checkout = builtin_path()
    assert checkout is not None
    assert not inside.is_symlink() and inside.stat().st_size == checkout.stat().st_size
    assert inside.stat().st_size <= 95_000_000  # an index takes wheels of 100 MB


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


def test_a_c_program_builds_against_it_with_gcc_alone(wheel: Path, good: Path, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    llama = importlib.util.find_spec("llama_cpp").submodule_search_locations[0]  # type: ignore[union-attr,index]
    program = tmp_path / "embed"
    environment = {"PATH": "/usr/bin:/bin", "EDGEMOE": str(wheel / "edgemoe"), "LLAMA_LIB": f"{llama}/lib"}
    subprocess.run([ROOT / "apps" / "embed-c" / "build.sh", program], env=environment, check=True)
    done = subprocess.run(
        [program, good, "1024", "--max-tokens", "5", "--cache", tmp_path / "cache", "hello"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
