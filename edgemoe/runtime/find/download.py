"""Download one model from the Hugging Face hub, in a process of its own: `python -m edgemoe.runtime.find.download`.

Told what to fetch as JSON on stdin ({repo, file, cache, progress}); prints one JSON line: {path} or {error, hint,
kind}. What an earlier process left is continued, which huggingface_hub does no more, and what arrived is compared
with the hub's size and SHA-256 before it becomes part of the hub's cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from ... import files as system
from ...errors import EdgeMoEError, FormatError, StorageError, UsageError
from ...units import MIB, format_size
from .hub import choose

_SPARE_BYTES = 64 * MIB  # what a download must leave free on the disk
_MAX_HTTP_BYTES = 50_000_000_000  # larger files are served in the hub's own chunks alone: its client fetches those


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it quietly; what is there is continued next time
    order = json.load(sys.stdin)
    try:
        answer = {"path": str(download(order["repo"], order["file"], Path(order["cache"]), order["progress"]))}
    except EdgeMoEError as error:
        answer = {"error": error.message, "hint": error.hint, "kind": type(error).__name__}
    print(json.dumps(answer), flush=True)


def download(repo: str, wanted: str, cache: Path, progress: bool) -> Path:
    """The (first) file of the model in the cache. Raises UsageError, StorageError, FormatError."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise UsageError(
            f"`hf:{repo}` is not on this machine, and huggingface_hub, which would download it, is not installed",
            hint="`pip install huggingface_hub`, or download the file in another way and give its path",
        ) from None
    if not progress:
        disable_progress_bars()
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True)
        files = {file.rfilename: file for file in info.siblings or []}
        names = choose(repo, files, wanted)
        if lacking := [name for name in names if name not in files]:
            raise FormatError(f"`{repo}` lacks `{lacking[0]}`", hint="choose another file or repository")
        _check_room(names, files, repo, info.sha, cache)
        paths = []
        for name in names:
            _fetch_blob(repo, name, info.sha, files[name], cache)
            paths.append(Path(huggingface_hub.hf_hub_download(repo, name, revision=info.sha, cache_dir=cache)))
    except errors.GatedRepoError:
        raise UsageError(
            f"`{repo}` wants its terms accepted", hint=f"accept them on huggingface.co/{repo}, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UsageError(f"the hub has no repository `{repo}`", hint="check owner and name") from None
    except errors.OfflineModeIsEnabled:
        raise StorageError(
            f"`hf:{repo}` is not on this machine, and HF_HUB_OFFLINE forbids to download it",
            hint="`edgemoe models` lists what is here",
        ) from None
    except EdgeMoEError:
        raise
    # The client lets its HTTP library's errors through, and that library is another in each of its major versions.
    except Exception as error:
        raise StorageError(f"cannot download `{repo}`: {_one_line(error)}", hint=_hint(error)) from None
    return paths[0]


def _fetch_blob(repo: str, name: str, revision: str | None, known: Any, cache: Path) -> None:
    """Put a file's content where the hub's client then finds it and only links to it."""
    import huggingface_hub
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils._headers import build_hf_headers

    url = huggingface_hub.hf_hub_url(repo, name, revision=revision)
    meta = huggingface_hub.get_hf_file_metadata(url)
    if not meta.etag or (meta.size or 0) > _MAX_HTTP_BYTES:
        return
    blob = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / meta.etag
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{meta.etag}.edgemoe.incomplete")
    try:
        fd, lock = system.open_locked(partial, os.O_WRONLY | os.O_APPEND)
    except BlockingIOError:
        raise StorageError(f"`{name}` is being downloaded by another process", hint="wait for it") from None
    try:
        with os.fdopen(fd, "ab") as file:
            here = file.tell()
            if meta.size is None or here < meta.size:
                # It retries what is transient, and begins anew where a server ignores the range.
                http_get(url, file, resume_size=here, headers=build_hf_headers(), expected_size=meta.size)
            file.flush()
            os.fsync(file.fileno())
        wanted = known.lfs.sha256 if known.lfs else None
        if partial.stat().st_size != (meta.size or known.size) or (wanted and _sha256(partial) != wanted):
            partial.unlink()
            raise FormatError(f"`{name}` arrived damaged", hint="download it again")
        os.replace(partial, blob)
    finally:
        os.close(lock)


def _hint(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return "try again later"
    if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
        return "free some space, or set `HF_HUB_CACHE` to a folder on another disk"
    return "check the network and try again: the download goes on where it stopped; `edgemoe models` lists what is here"


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _check_room(names: list[str], files: dict[str, Any], repo: str, revision: str | None, cache: Path) -> None:
    from huggingface_hub import try_to_load_from_cache

    missing = [n for n in names if not isinstance(try_to_load_from_cache(repo, n, cache, revision), str)]
    need = sum(files[name].size or 0 for name in missing) + _SPARE_BYTES
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    # What an interrupted download has left is counted as missing: better to ask for too much than to fill a disk.
    if need > free:
        raise StorageError(
            f"`{repo}` takes {format_size(need)}, `{cache}` has {format_size(free)} free",
            hint="free some space, or set `HF_HUB_CACHE` to a folder on another disk",
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(4 * MIB):
            digest.update(block)
    return digest.hexdigest()


if __name__ == "__main__":
    main()
