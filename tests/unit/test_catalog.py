"""Models by name: where they are looked for, what they are called, and what a name means. Files are real, tiny."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from edgemoe import places
from edgemoe.errors import UsageError
from edgemoe.paths import xdg_cache
from edgemoe.places import Place
from edgemoe.runtime.find.hub import choose
from edgemoe.runtime.find.local import Found, find_models, is_model_file, split_set
from edgemoe.runtime.find.names import resolve

VARIABLES = ("EDGEMOE_MODELS", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "OLLAMA_MODELS", "LLAMA_CACHE")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, with nothing said in the environment."""
    for name in ("HOME", "USERPROFILE"):  # Windows' name for it
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setattr("edgemoe.places.user_cache", xdg_cache)
    for name in (*VARIABLES, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def put(path: Path, content: str = "GGUF") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def in_hub(hub: Path, repo: str, file: str, content: str = "GGUF", revision: str = "abc") -> Path:
    """As huggingface_hub lays a file out: a link in a snapshot to a blob; where links want a right, the file itself."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    blob = put(folder / "blobs" / f"{abs(hash((file, content, revision)))}", content)
    link = folder / "snapshots" / revision / file
    link.parent.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        put(link, content)
    else:
        link.symlink_to(blob)
    return link


def in_ollama(folder: Path, name: str, content: str) -> Path:
    model, _, tag = name.rpartition(":")
    layers = [{"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{content}"}]
    put(folder / "manifests" / "registry.ollama.ai" / model / tag, json.dumps({"layers": layers}))
    return put(folder / "blobs" / f"sha256-{content}", content)


def found() -> dict[str, Found]:
    return {model.name: model for model in find_models() if model.place != "built in"}


def test_every_place_is_looked_into(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = in_hub(home / ".cache/huggingface/hub", "owner/Big-GGUF", "Big-Q4_K_M.gguf")
    studio = put(home / ".lmstudio/models/publisher/repo/studio.gguf")
    old_studio = put(home / ".cache/lm-studio/models/publisher/repo/old.gguf")
    blob = in_ollama(home / ".ollama/models", "library/qwen3:30b", "cafe")
    llama = put(home / ".cache/llama.cpp/owner_repo_file.gguf")
    own = put(home / "mine" / "deep" / "own.gguf")
    monkeypatch.setenv("EDGEMOE_MODELS", f"{home / 'mine'}{os.pathsep}{home / 'nowhere'}")
    assert {name: (model.path, model.place) for name, model in found().items()} == {
        "own": (own, "EDGEMOE_MODELS"),
        "Big-Q4_K_M": (hub, "Hugging Face"),
        "studio": (studio, "LM Studio"),
        "old": (old_studio, "LM Studio"),
        "qwen3:30b": (blob, "Ollama"),
        "owner_repo_file": (llama, "llama.cpp"),
    }


def test_the_variables_of_others_move_their_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("OLLAMA_MODELS", str(home / "ollama"))
    monkeypatch.setenv("LLAMA_CACHE", str(home / "llama"))
    in_hub(home / "hf" / "hub", "a/b", "one.gguf")
    in_ollama(home / "ollama", "someone/model:latest", "beef")
    put(home / "llama" / "three.gguf")
    assert set(found()) == {"one", "someone/model", "three"}
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "elsewhere"))
    in_hub(home / "elsewhere", "a/b", "four.gguf")
    assert set(found()) == {"four", "someone/model", "three"}


def test_nothing_anywhere_is_an_empty_list(home: Path) -> None:
    assert found() == {}


def test_a_split_set_is_one_model_and_half_of_it_is_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_MODELS", str(home / "mine"))
    first = put(home / "mine" / "m-00001-of-00002.gguf", "one")
    assert found() == {}  # still being downloaded
    second = put(home / "mine" / "m-00002-of-00002.gguf", "second")
    assert split_set(first) == [first, second]
    assert (found()["m"].path, found()["m"].n_bytes) == (first, len("onesecond"))


def test_what_is_no_language_model_is_left_out() -> None:
    assert is_model_file("a/b-00001-of-00003.GGUF")
    for name in ("mmproj-F16.gguf", "b-00002-of-00003.gguf", "config.json", "weights.gguf.incomplete"):
        assert not is_model_file(name)


def test_a_file_that_two_places_link_to_is_listed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = put(home / "mine" / "one.gguf")
    link = home / ".lmstudio/models/a/b/other.gguf"
    link.parent.mkdir(parents=True)
    link.symlink_to(real)
    monkeypatch.setenv("EDGEMOE_MODELS", str(home / "mine"))
    assert list(found()) == ["one"]


def test_the_newest_snapshot_of_a_file_counts(home: Path) -> None:
    hub = home / ".cache/huggingface/hub"
    in_hub(hub, "a/b", "one.gguf", "old", revision="first")
    os.utime(hub / "models--a--b/snapshots/first", (1, 1))
    newest = in_hub(hub, "a/b", "one.gguf", "new", revision="second")
    assert found()["one"].path == newest


def test_equal_names_are_told_apart(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = home / ".cache/huggingface/hub"
    in_hub(hub, "a/x", "same.gguf", "1")
    in_hub(hub, "b/x", "same.gguf", "2")
    mine = put(home / "mine" / "same.gguf", "3")
    monkeypatch.setenv("EDGEMOE_MODELS", str(home / "mine"))
    assert set(found()) == {"a/x:same", "b/x:same", str(mine)}
    assert resolve("a/x:same") == found()["a/x:same"].path


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"layers": [{"mediaType": "x"}]}', '{"layers": 3}'])
def test_a_manifest_that_is_none_is_passed_over(home: Path, manifest: str) -> None:
    put(home / ".ollama/models/manifests/registry.ollama.ai/library/m/t", manifest)
    assert found() == {}


# ---------------------------------------------------------------- what a name means


def test_a_name_its_part_and_its_file_name_mean_the_model(home: Path) -> None:
    path = in_hub(home / ".cache/huggingface/hub", "owner/Big-GGUF", "Big-30B-Q4_K_M.gguf")
    for name in ("Big-30B-Q4_K_M", "big-30b", "Big-30B-Q4_K_M.gguf", "owner/Big-GGUF", "hf:owner/Big-GGUF"):
        assert resolve(name) == path, name


def test_a_whole_name_wins_over_a_part(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_MODELS", str(home))
    path = put(home / "qwen.gguf", "1")
    put(home / "qwen-large.gguf", "2")
    assert resolve("qwen") == path
    with pytest.raises(UsageError, match="may be any of 2 models") as error:
        resolve("qwe")
    assert "`qwen-large`" in error.value.hint


def test_a_file_wins_over_a_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEMOE_MODELS", str(home / "mine"))
    put(home / "mine" / "model.gguf")
    put(home / "here" / "model.gguf", "nearer")
    monkeypatch.chdir(home / "here")
    assert resolve("model.gguf").read_text() == "nearer"
    assert resolve("model") == home / "mine" / "model.gguf"


@pytest.mark.parametrize("path", ["./x.gguf", "/nowhere/x", "~/x", "folder/x.gguf"])
def test_a_path_is_a_path_also_when_nothing_is_there(home: Path, path: str) -> None:
    assert resolve(path) == Path(path).expanduser()


def test_a_misspelt_name_gets_a_suggestion(home: Path) -> None:
    in_hub(home / ".cache/huggingface/hub", "a/b", "mixtral-8x7b.gguf")
    with pytest.raises(UsageError) as error:
        resolve("mixtrol-8x7b")
    assert error.value.hint == "did you mean `mixtral-8x7b`?"


def test_without_the_built_in_model_its_name_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemoe.runtime.find.names.builtin_path", lambda: None)
    with pytest.raises(UsageError, match="this installation has no built-in model"):
        resolve(places.BUILTIN)


# ---------------------------------------------------------------- files of a repository

REPO = ["README.md", "m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-m.gguf"]


@pytest.mark.parametrize(
    ("wanted", "files"),
    [
        ("", ["m-Q4_K_M.gguf"]),
        ("q8_0", REPO[2:4]),
        ("m-Q8_0", REPO[2:4]),
        ("m-Q4_K_M.gguf", ["m-Q4_K_M.gguf"]),
    ],
)
def test_a_file_of_a_repository_is_chosen(wanted: str, files: list[str]) -> None:
    assert choose("o/r", REPO, wanted) == files


@pytest.mark.parametrize(("files", "wanted", "words"), [
    (["README.md"], "", "has no GGUF files"),
    (REPO, "Q2_K", "has 0 models like `Q2_K`"),
    (["a-Q5_0.gguf", "a-Q8_0.gguf"], "", "has 2 models"),
    (REPO, "m-", "has 2 models like `m-`"),
])  # fmt: skip
def test_what_cannot_be_chosen_lists_what_can(files: list[str], wanted: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        choose("o/r", files, wanted)
    assert words in error.value.message


def test_a_place_that_several_variables_name_is_looked_into_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home / ".lmstudio/models"
    put(folder / "one.gguf")
    monkeypatch.setenv("EDGEMOE_MODELS", f"{folder}{os.pathsep}{folder}")
    assert places.model_places() == [Place("EDGEMOE_MODELS", "files", folder)]
