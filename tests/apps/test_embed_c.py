"""apps/embed-c: a host program with no Python in it says what Python says, inside its budget."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgemoe
from edgemoe import Sampling
from edgemoe.bench.limit import LimitUnavailable, memory_limit
from edgemoe.units import MIB

from .conftest import APPS, need, packages

ROOT = APPS.parent
SYSTEM, QUESTION = "you are the other thing", "what is in the interior?"


def run(program: Path, *arguments: object, cache: Path, **options: object) -> subprocess.CompletedProcess[str]:
    command = [str(program), *map(str, arguments), "--cache", str(cache), "--threads", "1"]
    return subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False, **options)  # type: ignore[call-overload,no-any-return]


def tokens_of(stderr: str) -> list[int]:
    found = re.search(r"^tokens:(.*)$", stderr, re.MULTILINE)
    assert found, stderr
    return [int(token) for token in found[1].split()]


def python_answer(
    model: Path, max_tokens: int, sampling: Sampling, *, system: str, question: str
) -> tuple[str, list[int]]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    with edgemoe.load(model, memory="2GiB", ctx=512, threads=1) as engine:
        text = "".join(engine.chat(messages, max_tokens=max_tokens, sampling=sampling))
        return text, engine._sequence._tokens.tolist()


def test_no_python_is_in_it(embed: Path) -> None:
    needed = subprocess.run([need("ldd"), str(embed)], capture_output=True, text=True, check=True).stdout
    assert "libedgemoe.so" in needed and "not found" not in needed
    assert "python" not in re.sub(r"=>.*", "", needed)


@pytest.mark.parametrize(("temp", "seed"), [(0, 0), (0.8, 7)])
def test_it_streams_pythons_tokens(
    embed: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temp: float, seed: int
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path))
    text, tokens = python_answer(tiny, 50, Sampling(temp=temp, seed=seed), system=SYSTEM, question=QUESTION)
    options = ("--max-tokens", 50, "--temp", temp, "--seed", seed, "--ctx", 512, "--tokens", "--system", SYSTEM)
    done = run(embed, tiny, 2048, *options, QUESTION, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == text + "\n"
    assert tokens_of(done.stderr) == tokens
    assert re.search(r"answer 4\d tokens at [\d.]+ tok/s", done.stderr)


def test_a_trained_model_says_the_same(
    embed: Path, smolmoe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEMOE_CACHE", str(tmp_path))
    system, question = "You are helpful.", "Write a line about the sea."
    text, tokens = python_answer(smolmoe, 30, Sampling(temp=0.7, seed=3), system=system, question=question)
    options = ("--max-tokens", 30, "--temp", 0.7, "--seed", 3, "--ctx", 512, "--tokens", "--system", system)
    done = run(embed, smolmoe, 2048, *options, question, cache=tmp_path)
    assert (done.stdout, tokens_of(done.stderr)) == (text + "\n", tokens), done.stderr


def test_ctrl_c_ends_the_answer_and_the_cost_is_told(embed: Path, tiny: Path, tmp_path: Path) -> None:
    command = [str(embed), str(tiny), "2048", "--raw", "the theme", "--cache", str(tmp_path), "--threads", "1"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    first = child.stdout.read(10)  # it answers: several thousand tokens are to come
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=1800)
    assert first
    assert child.returncode == 130
    assert "embed: cancelled" in told and "tok/s" in told


def test_the_smallest_budget_is_named_and_holds_under_the_kernels_limit(
    embed: Path, smolmoe: Path, tmp_path: Path
) -> None:
    refused = run(embed, smolmoe, 20, "hello", cache=tmp_path)
    assert refused.returncode == 1
    named = re.search(r"the smallest budget is (\d+) MiB", refused.stderr)
    assert named and "is too small for SmolMoE" in refused.stderr
    budget = int(named[1])
    try:
        with memory_limit(budget * MIB, f"edgemoe-embed-{time.monotonic_ns()}") as limit:
            prompt = "The history of the sea is long. " * 40
            options = ("--raw", prompt, "--max-tokens", 30)
            done = run(embed, smolmoe, budget, *options, cache=tmp_path, preexec_fn=limit.joiner())
            assert limit.n_kill() == 0
            assert done.returncode == 0, done.stderr
            peak = limit.peak_bytes()
            assert peak is None or peak <= budget * MIB
    except LimitUnavailable as error:
        pytest.skip(str(error))
    assert len(done.stdout) > 20


def test_the_guides_example_is_a_program(tiny: Path, tmp_path: Path) -> None:
    example = re.search(r"```c\n(.*?)```", (ROOT / "docs" / "embedding.md").read_text(), re.DOTALL)
    assert example
    body = example[1].replace('"model.gguf"', f'"{tiny}"').replace(".max_tokens = 200", ".max_tokens = 20")
    source = tmp_path / "example.c"
    source.write_text(f"#include <edgemoe.h>\n#include <stdio.h>\nint main(int argc, char **argv) {{\n(void)argc;\n"
                      f"const char *cache_dir = argv[1];\n{body}\nreturn status;\n}}\n")  # fmt: skip
    ours, llama = packages()
    libraries = [f"-L{ours}", f"-L{llama}", "-ledgemoe", "-Wl,--no-as-needed", "-lllama", "-lggml", "-lggml-base",
                 "-lggml-cpu", f"-Wl,-rpath,{ours}", f"-Wl,-rpath,{llama}"]  # fmt: skip
    include = ["-I", str(ROOT / "native" / "include")]
    program = tmp_path / "example"
    subprocess.run(
        [need("gcc"), "-std=c11", "-Wall", "-Werror", *include, source, "-o", program, *libraries], check=True
    )
    done = subprocess.run([program, tmp_path / "cache"], capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_mistakes_are_told_in_a_line(embed: Path, tiny: Path, tmp_path: Path) -> None:
    for arguments, code in (
        ((tiny, "many", "hello"), 2),
        ((tiny, 500), 2),
        ((tiny, 500, "hello", "--colour", "blue"), 2),
        ((tmp_path / "absent.gguf", 500, "hello"), 1),
        ((tiny, 500, "hello", "--template", "nonsense"), 1),
    ):
        done = run(embed, *arguments, cache=tmp_path)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith(("embed: ", "usage: "))


def test_a_processor_without_the_instructions_is_an_error(embed: Path, tiny: Path, tmp_path: Path) -> None:
    """Where there was "Illegal instruction", and nothing else."""
    command = [need("qemu-x86_64-static"), "-cpu", "Nehalem", embed, tiny, "512", "--cache", tmp_path, "hello"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "compiled for another processor" in done.stderr, done.stderr


@pytest.mark.slow
def test_cmake_installs_what_pkg_config_finds(tiny: Path, tmp_path: Path) -> None:
    """A prefix of one's own: cmake --install, then gcc with what pkg-config says, nothing else."""
    need("gcc"), need("pkg-config")
    import importlib.util

    spec = importlib.util.find_spec("llama_cpp")
    assert spec and spec.submodule_search_locations
    site = Path(spec.submodule_search_locations[0]).parent
    cmake, prefix = Path(sys.executable).with_name("cmake"), tmp_path / "prefix"
    if not cmake.exists():
        pytest.skip("no cmake in this environment")
    build = tmp_path / "build"
    for command in (
        [cmake, "-S", ROOT / "native", "-B", build, f"-DCMAKE_PREFIX_PATH={site}"],
        [cmake, "--build", build, "--parallel", "2"],
        [cmake, "--install", build, "--prefix", prefix],
    ):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "edgemoe"],
        env={"PATH": "/usr/bin:/bin", "PKG_CONFIG_PATH": str(prefix / "lib" / "pkgconfig")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    program = tmp_path / "embed"
    source = APPS / "embed-c" / "embed.c"
    subprocess.run(["gcc", "-std=c11", str(source), "-o", str(program), *flags, "-pthread"], check=True)
    done = run(program, tiny, 2048, "--max-tokens", 5, "hello", cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
