"""The wheel of `./dev wheel` needs no compiler, no llama-cpp-python, no network, and is fast on every processor."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import pytest
from console import PACKAGE

ROOT = PACKAGE.parent
WHEELS = sorted((ROOT / "dist").glob("edgemoe-*.whl"))
QUESTION = ["run", "-p", "The capital of France is", "--temp", "0", "--threads", "2", "--memory", "400M"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WHEELS, reason="no wheel in dist/: `./dev wheel` builds it"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and runs qemu-user"),
]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every wheel that an installation takes: ours, and those of the index."""
    folder = tmp_path_factory.mktemp("index")
    for wheel in (ROOT / "dist").glob("*.whl"):
        (folder / wheel.name).symlink_to(wheel)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--find-links", str(folder), "--dest", str(folder)]
    done = subprocess.run([*command, str(WHEELS[-1])], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"the dependencies cannot be had: {done.stderr.strip().splitlines()[-1]}")
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH with what a machine without a compiler has."""
    folder = tmp_path_factory.mktemp("bin")
    for name in ("sh", "env", "uname", "ldconfig"):
        found = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin")
        if found:
            (folder / name).symlink_to(found)
    return folder


@pytest.fixture(scope="module")
def installed(index: Path, bare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `python` of a new environment into which it was installed, offline."""
    home = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(home, with_pip=True)
    python = home / "bin" / "python"
    begin = time.monotonic()
    command = [str(python), "-m", "pip", "install", "--quiet", "--no-index", "--find-links", str(index), "edgemoe"]
    done = subprocess.run(command, env={"PATH": str(bare)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answer = ask(python, home.parent / "cache", path=bare)
    print(f"installed and answered in {time.monotonic() - begin:.1f} s: {answer!r}")
    return python


def ask(
    python: Path | str, cache: Path, *, path: Path | str = "/usr/bin:/bin", before: tuple[str, ...] = (), n: int = 12
) -> str:
    done = subprocess.run(
        [*before, str(python), "-m", "edgemoe", *QUESTION, "-n", str(n)],
        env={"PATH": str(path), "EDGEMOE_CACHE": str(cache), "HOME": str(cache)},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_needs_no_compiler_and_no_llama_cpp_python(installed: Path, tmp_path: Path) -> None:
    script = "import importlib.util as u; assert not u.find_spec('llama_cpp'); assert not u.find_spec('onnxruntime')"
    subprocess.run([installed, "-c", script], check=True)
    assert ask(installed, tmp_path) == ask(sys.executable, tmp_path)


def test_it_holds_libraries_licences_and_no_folder_of_the_builder() -> None:
    names = zipfile.ZipFile(WHEELS[-1]).namelist()
    libraries = {Path(name).stem for name in names if name.startswith("edgemoe/lib/") and name.endswith(".so")}
    assert {"libedgemoe", "libedgemoe-llama", "libedgemoe-ggml", "libedgemoe-ggml-base"} < libraries
    assert sum(name.startswith("libggml-cpu-") for name in libraries) > 5
    assert {"llama.cpp.txt", "ggml-cpu.txt"} <= {Path(name).name for name in names if "/licenses/" in name}
    assert not any(name.endswith(".gguf") for name in names)
    assert WHEELS[-1].stat().st_size < 20_000_000
    assert "-py3-none-manylinux_2_" in WHEELS[-1].name


@pytest.mark.parametrize("first", ["edgemoe", "llama_cpp"])
def test_it_lives_beside_llama_cpp_python(installed: Path, tmp_path: Path, first: str) -> None:
    theirs = importlib.util.find_spec("llama_cpp")
    if theirs is None or not theirs.submodule_search_locations:
        pytest.skip("llama-cpp-python is not installed here")
    site = Path(theirs.submodule_search_locations[0]).parent
    extra = tmp_path / "extra"  # its dependencies too, and nothing of ours
    extra.mkdir()
    for entry in site.iterdir():
        if "edgemoe" not in entry.name and entry.suffix != ".pth":
            (extra / entry.name).symlink_to(entry)
    ours = "import edgemoe; from edgemoe import _native; _native.library(); assert _native.bundled()"
    stock = "import llama_cpp; llama_cpp.llama_backend_init(); assert llama_cpp.llama_supports_mmap()"
    rest = """
with edgemoe.load(edgemoe.resolve("smolmoe-135m"), memory="400M", ctx=256, threads=2) as engine:
    print("".join(engine.generate("The capital of France is", max_tokens=8, sampling=edgemoe.Sampling(temp=0))))
params = llama_cpp.llama_model_default_params()
assert llama_cpp.llama_model_load_from_file(str(edgemoe.resolve("smolmoe-135m")).encode(), params)
names = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if ".so" in line}
assert {"libllama.so", "libedgemoe-llama.so"} <= names, names
assert sum(name.startswith("libggml-cpu") for name in names) == 2, names
"""
    script = "\n".join([*((ours, stock) if first == "edgemoe" else (stock, ours)), rest])
    done = subprocess.run(
        [installed, "-c", script],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(extra), "EDGEMOE_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "capital" in done.stdout


def test_kernels_in_the_current_directory_are_not_loaded(installed: Path, tmp_path: Path) -> None:
    """ggml by itself would open any libggml-cpu-*.so that lies there."""
    marked = tmp_path / "marked"
    evil = tmp_path / "libggml-cpu-evil.so"
    if shutil.which("gcc") is None:
        pytest.skip("no gcc")
    (tmp_path / "evil.c").write_text(
        "#include <fcntl.h>\n"
        f'__attribute__((constructor)) static void run(void) {{ open("{marked}", O_CREAT | O_WRONLY, 0600); }}\n'
        "int ggml_backend_score(void) { return 1 << 30; }\n"
    )
    subprocess.run(["gcc", "-shared", "-fPIC", tmp_path / "evil.c", "-o", evil], check=True)
    script = "from edgemoe import _native; print(_native.build_info(), _native.devices())"
    done = subprocess.run([installed, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "ggml-cpu-" in done.stdout and "CPU" in done.stdout
    assert not marked.exists()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the emulated processors are x86-64")
@pytest.mark.parametrize(
    ("processor", "kernels"), [("Nehalem", "sse42"), ("SandyBridge", "sandybridge"), ("Haswell", "haswell")]
)
def test_each_processor_gets_its_kernels(installed: Path, tmp_path: Path, processor: str, kernels: str) -> None:
    qemu = shutil.which("qemu-x86_64-static")
    if qemu is None:
        pytest.skip("qemu-user is not installed")
    script = "from edgemoe import _native; print(_native.build_info())"
    before = (qemu, "-cpu", processor)
    done = subprocess.run([*before, installed, "-c", script], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"ggml-cpu-{kernels}")
    if processor == "Haswell":  # an answer takes a minute, emulated
        assert ask(installed, tmp_path, before=before, n=4).startswith(ask(installed, tmp_path, n=4)[:12])


def test_a_gpu_is_refused_with_what_to_install(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed, "-m", "edgemoe", "plan", "--device", "vulkan"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and "sees no Vulkan device" in lines[0], done.stderr
    assert "--no-binary edgemoe,llama-cpp-python" in lines[1]


def test_what_needs_stock_llama_cpp_says_so(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [installed, "-m", "edgemoe", "bench", "--memory", "400M", "--against", "llama.cpp"],
        env={"PATH": "/usr/bin:/bin", "EDGEMOE_CACHE": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stderr
    assert "llama-cpp-python is not installed" in done.stderr and "hint: install `llama-cpp-python==" in done.stderr
