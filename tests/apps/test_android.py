"""apps/android: the JNI layer and the Kotlin wrapper on a desktop JVM say what Python says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgemoe
from edgemoe import Sampling

from .conftest import APPS, need, packages

ROOT = APPS.parent
SOURCES = APPS / "android" / "edgemoe" / "src"
# Where `./dev apps` puts the compiler that npm has.
KOTLIN = ROOT / "build" / "kotlin" / "node_modules" / "kotlin-compiler"
TALK = [
    {"role": "system", "content": "you are the other thing"},
    {"role": "user", "content": "what is in the interior? € 😀"},
]


def run(*command: object) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=1800, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def jni(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of libedgemoe_jni.so, built by the CMakeLists.txt that the NDK is given."""
    need("javac")
    cmake = Path(sys.executable).with_name("cmake")
    if not cmake.exists():
        pytest.skip("no cmake in this environment")
    folder = tmp_path_factory.mktemp("jni")
    ours, llama = packages()
    prefix = folder / "prefix"
    (prefix / "include").mkdir(parents=True)
    shutil.copy(ROOT / "native" / "include" / "edgemoe.h", prefix / "include")
    (prefix / "lib").symlink_to(ours)
    java_home = Path(need("javac")).resolve().parent.parent
    run(
        cmake, "-S", SOURCES / "main" / "cpp", "-B", folder, f"-DEDGEMOE_PREFIX={prefix}", f"-DLLAMA_LIB={llama}",
        f"-DJAVA_HOME={java_home}",
    )  # fmt: skip
    run(cmake, "--build", folder)
    return folder


@pytest.fixture(scope="module")
def answer(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What Python says to TALK."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEMOE_CACHE", str(tmp_path_factory.mktemp("cache")))
        with edgemoe.load(tiny, memory="2GiB", ctx=512, threads=1) as engine:
            return "".join(engine.chat(TALK, max_tokens=50, sampling=Sampling(temp=0.8, seed=7)))


def java(jni: Path, classes: str, main: str, *arguments: object) -> str:
    # The JVM checks every JNI call; -Xcheck:jni writes what it finds to stdout.
    return run("java", "-Xcheck:jni", f"-Djava.library.path={jni}", "-cp", classes, main, *arguments)


def test_the_jni_layer_on_a_desktop_jvm(jni: Path, tiny: Path, answer: str, tmp_path: Path) -> None:
    java_files = [*(SOURCES / "main" / "java").rglob("*.java"), *(SOURCES / "test" / "java").rglob("*.java")]
    run(need("javac"), "-Xlint:all", "-Werror", "-d", tmp_path / "classes", *java_files)
    told = java(jni, str(tmp_path / "classes"), "io.edgemoe.JniTest", tiny, tmp_path / "cache", tmp_path / "out")
    assert "JniTest: all good" in told
    assert "WARNING in native method" not in told and "FATAL ERROR" not in told
    assert (tmp_path / "out").read_text() == answer


@pytest.mark.slow
def test_the_kotlin_wrapper_on_a_desktop_jvm(jni: Path, tiny: Path, answer: str, tmp_path: Path) -> None:
    if not KOTLIN.exists():
        pytest.skip("no Kotlin compiler: `./dev apps` gets one from npm")
    java_files = list((SOURCES / "main" / "java").rglob("*.java"))
    kotlin_files = [
        *(SOURCES / "main" / "kotlin").rglob("*.kt"),
        *(SOURCES / "test" / "kotlin").rglob("*.kt"),
        *(SOURCES / "test" / "stubs").rglob("*.kt"),
    ]
    classes = tmp_path / "classes"
    libraries = os.pathsep.join(
        str(KOTLIN / "lib" / f"{name}.jar") for name in ("kotlin-stdlib", "kotlinx-coroutines-core-jvm")
    )
    run(need("javac"), "-d", classes, *java_files)
    run("bash", KOTLIN / "bin" / "kotlinc", "-Werror", "-jvm-target", "17", "-cp",
        os.pathsep.join([str(classes), libraries]), "-d", classes, *kotlin_files)  # fmt: skip
    told = java(
        jni, os.pathsep.join([str(classes), libraries]), "io.edgemoe.SessionTestKt", tiny, tmp_path / "cache",
        tmp_path / "out",
    )  # fmt: skip
    assert "SessionTest: all good" in told
    assert (tmp_path / "out").read_text() == answer
