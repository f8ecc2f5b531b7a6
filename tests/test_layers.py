"""Dependencies point one way: cli and bench -> runtime -> devices -> the vocabulary in edgemoe/."""

from __future__ import annotations

import ast
import graphlib
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What the files of a folder may import of ours. "edgemoe" is the vocabulary: files directly in edgemoe/.
ALLOWED = {
    "edgemoe": {"edgemoe", "_native"},
    "_native": {"edgemoe", "_native"},
    "devices": {"edgemoe", "_native", "devices"},
    "runtime": {"edgemoe", "_native", "devices", "runtime"},
    "converters": {"edgemoe", "_native", "converters"},
    "bench": {"edgemoe", "_native", "devices", "runtime", "bench"},
    "serve": {"edgemoe", "_native", "devices", "runtime", "serve"},
    "quality": {"edgemoe", "_native", "devices", "runtime", "converters", "bench", "quality"},
    "cli": {"edgemoe", "_native", "devices", "runtime", "converters", "bench", "quality", "serve", "cli"},
}
EXEMPT = {"edgemoe/__init__.py", "edgemoe/__main__.py"}  # the façade, lazy; and the entry to cli
# Imported inside the functions that need them: memory is the product.
HEAVY = {"numpy", "jinja2", "psutil", "rich", "typer", "gguf", "llama_cpp", "onnx", "onnxruntime"}
HEAVY |= {"starlette", "uvicorn", "msgspec"}
LAZY_FOLDERS = {"edgemoe", "_native", "devices", "runtime"}


def sources(folder: str) -> list[Path]:
    inside = ROOT / "edgemoe" if folder == "edgemoe" else ROOT / "edgemoe" / folder
    return sorted(inside.glob("*.py") if folder == "edgemoe" else inside.rglob("*.py"))


def module_name(path: Path) -> list[str]:
    return list(path.relative_to(ROOT).with_suffix("").parts)


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Absolute names of what a file imports; with top_level, of what importing the file imports."""
    tree = ast.parse(path.read_text())
    nodes: list[ast.AST] = list(ast.walk(tree))
    if top_level:
        nodes = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    here = module_name(path)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            stem = [*base, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*stem, alias.name]) for alias in node.names)


def folder_of(name: str) -> str | None:
    """The folder of ours that an imported name lives in, None for others' modules."""
    parts = name.split(".")
    if parts[0] != "edgemoe":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else "edgemoe"


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_lies_below_it(folder: str) -> None:
    files = sources(folder)
    assert files
    for path in files:
        if str(path.relative_to(ROOT)) in EXEMPT:
            continue
        for name in imports(path):
            assert folder_of(name) in ALLOWED[folder] | {None}, f"{path} imports {name}"
            assert name.split(".")[0] not in {"runtime", "devices", "converters"}, f"{path} imports the bare {name}"


def run_time_imports(nodes: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    """Import statements, also those inside functions, but those for type checkers."""
    for node in nodes:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)):
            yield from run_time_imports(ast.iter_child_nodes(node))


def test_no_import_goes_round_in_a_circle() -> None:
    modules = {}
    for path in (ROOT / "edgemoe").rglob("*.py"):
        parts = module_name(path)
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        here = module_name(path)[:-1]
        found = set()
        for node in run_time_imports(ast.parse(path.read_text()).body):
            if isinstance(node, ast.ImportFrom):
                base = here[: len(here) - node.level + 1] if node.level else []
                stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
                found |= {f"{stem}.{alias.name}" if f"{stem}.{alias.name}" in modules else stem for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = (found & modules.keys()) - {name}
    assert len(graph["edgemoe.runtime.load"]) > 3
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names the circle


@pytest.mark.parametrize("path", sorted((ROOT / "edgemoe").rglob("*.py")), ids=lambda path: path.name)
def test_files_and_functions_are_of_a_size_to_read(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name}"


@pytest.mark.parametrize("folder", sorted(LAZY_FOLDERS))
def test_heavy_packages_are_imported_where_they_are_needed(folder: str) -> None:
    for path in sources(folder):
        heavy = {name.split(".")[0] for name in imports(path, top_level=True)} & HEAVY
        assert not heavy, f"{path} imports {heavy} at its top"


def test_only_the_binding_touches_ctypes() -> None:
    users = [path for folder in LAZY_FOLDERS for path in sources(folder) if "ctypes" in set(map(top, imports(path)))]
    assert users
    assert all(path.name == "_abi.py" or path.parent.name == "_native" for path in users), users


def top(name: str) -> str:
    return name.split(".")[0]


def test_the_environment_is_read_in_three_places() -> None:
    readers = [
        path.name
        for folder in LAZY_FOLDERS
        for path in sources(folder)
        if any(isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv") for node in walk(path))
    ]
    # Where a GPU's backend is; where the cache folder is; where models are.
    assert sorted(readers) == ["gpu.py", "paths.py", "places.py"]


def walk(path: Path) -> Iterator[ast.AST]:
    return ast.walk(ast.parse(path.read_text()))


def test_the_package_holds_its_folders_itself() -> None:
    """A clone without symbolic links (git's default on Windows) imports: what lies at the top only points inside."""
    for folder in ("converters", "runtime", "devices"):
        assert not (ROOT / "edgemoe" / folder).is_symlink()
        shown = ROOT / folder
        where = str(shown.readlink()) if shown.is_symlink() else shown.read_text()
        assert where.strip() == f"edgemoe/{folder}"


def test_importing_edgemoe_loads_next_to_nothing() -> None:
    import subprocess

    script = "import sys; import edgemoe; edgemoe.Sampling; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {top(name) for name in loaded.stdout.split()} & HEAVY
