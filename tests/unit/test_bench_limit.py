"""Kernel memory limits: found in mount tables by hand, and enforced for real where this machine lets us."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgemoe.bench.limit import Hierarchy, Limit, LimitUnavailable, drop_page_cache, find_hierarchy, memory_limit

MIB = 1 << 20

V1 = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n"
V1_MEMORY = "cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n"
HYBRID = "cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nosuid 0 0\n"


def test_the_controller_is_found_in_both_versions() -> None:
    assert find_hierarchy(V1 + V1_MEMORY) == Hierarchy(1, Path("/sys/fs/cgroup/memory"))
    assert find_hierarchy(V2) == Hierarchy(2, Path("/sys/fs/cgroup"))


def test_on_a_hybrid_machine_version_1_has_the_memory() -> None:
    assert find_hierarchy(HYBRID + V1 + V1_MEMORY) == Hierarchy(1, Path("/sys/fs/cgroup/memory"))


def test_no_memory_controller_is_none() -> None:
    assert find_hierarchy(V1) is None


@pytest.fixture
def limit() -> Iterator[Limit]:
    try:
        with memory_limit(64 * MIB, f"edgemoe-test.{os.getpid()}") as made:
            yield made
    except LimitUnavailable as error:
        pytest.skip(f"no kernel limits here: {error}")


def allocate(limit: Limit, n_mib: int) -> int:
    """Exit code of a child that fills n_mib of memory inside the limit."""
    program = f"block = bytearray({n_mib} << 20); block[::4096] = bytes(len(block[::4096]))"
    return subprocess.run([sys.executable, "-c", program], preexec_fn=limit.joiner(), check=False).returncode


def test_a_child_inside_the_limit_lives_and_its_peak_is_known(limit: Limit) -> None:
    assert allocate(limit, 16) == 0
    peak = limit.peak_bytes()
    assert peak is None or 16 * MIB < peak <= 64 * MIB
    assert limit.n_kill() == 0


def test_a_child_over_the_limit_is_killed_and_counted(limit: Limit) -> None:
    assert allocate(limit, 256) == -9
    assert limit.n_kill() >= 1


def test_nothing_is_left_behind(limit: Limit) -> None:
    folder = limit.folder.with_name(f"edgemoe-gone.{os.getpid()}")
    with memory_limit(64 * MIB, folder.name):
        assert folder.is_dir()
    assert not folder.exists()


def test_cached_pages_are_dropped_from_a_clean_file(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(os.urandom(MIB))
    assert drop_page_cache([file]) in (("all", "files") if sys.platform == "linux" else ("no",))
    assert file.stat().st_size == MIB
