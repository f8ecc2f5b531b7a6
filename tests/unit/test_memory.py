from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgemoe.devices.memory import available_memory, memory_limit, process_memory, total_memory
from edgemoe.units import GIB, MIB

linux = pytest.mark.skipif(sys.platform != "linux", reason="what is asked is Linux' /proc, cgroups or rlimits")


def machine(root: Path, cgroup: str, mountinfo: str, files: dict[str, str]) -> Path:
    """A /proc and /sys with 16 GiB of RAM, 12 of them available."""
    files = {
        "proc/meminfo": f"MemTotal: {16 * 1024**2} kB\nMemAvailable: {12 * 1024**2} kB\nHugePages_Total: 0\n",
        "proc/self/cgroup": cgroup,
        "proc/self/mountinfo": mountinfo,
        **files,
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2 = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = (
    "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "32 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
)


@linux
def test_without_limits_it_is_the_machines_memory(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/user\n", V2, {"sys/fs/cgroup/user/memory.max": "max\n"})
    assert total_memory(root) == memory_limit(root) == 16 * GIB
    assert available_memory(root) == 12 * GIB


@linux
def test_the_tightest_parent_of_a_version_2_cgroup_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "0::/a/b\n",
        V2,
        {
            "sys/fs/cgroup/a/memory.max": str(2 * GIB),
            "sys/fs/cgroup/a/memory.current": str(GIB),
            "sys/fs/cgroup/a/memory.stat": f"anon 5\ninactive_file {256 * MIB}\n",
            "sys/fs/cgroup/a/b/memory.max": str(4 * GIB),
            "sys/fs/cgroup/a/b/memory.current": "0",
        },
    )
    assert memory_limit(root) == 2 * GIB
    assert available_memory(root) == 2 * GIB - GIB + 256 * MIB  # page cache that nobody uses can be had


@linux
def test_a_version_1_cgroup_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        "9:cpu:/\n4:memory:/limited\n0::/\n",
        V1,
        {
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/limited/memory.limit_in_bytes": str(900 * MIB),
            "sys/fs/cgroup/memory/limited/memory.usage_in_bytes": str(100 * MIB),
            "sys/fs/cgroup/memory/limited/memory.stat": f"total_inactive_file {60 * MIB}\n",
        },
    )
    assert memory_limit(root) == 900 * MIB
    assert available_memory(root) == 860 * MIB


@linux
def test_in_a_container_the_mount_is_the_cgroup(tmp_path: Path) -> None:
    mount = "31 23 0:27 /docker/c0ffee /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
    files = {"sys/fs/cgroup/memory/memory.limit_in_bytes": str(3 * GIB)}
    for name, cgroup in (("inside", "4:memory:/docker/c0ffee\n"), ("outside", "4:memory:/elsewhere\n")):
        assert memory_limit(machine(tmp_path / name, cgroup, mount, files)) == 3 * GIB


def test_the_process_knows_its_own_memory() -> None:
    before = process_memory()
    block = bytearray(b"x") * (64 * MIB)
    after = process_memory()
    assert len(block) == 64 * MIB
    assert after.rss - before.rss > 32 * MIB
    assert after.peak >= after.rss >= after.anon + after.file - MIB
    assert memory_limit() <= total_memory()
    assert 0 < available_memory() <= memory_limit()


@linux
def test_a_root_without_proc_says_nothing(tmp_path: Path) -> None:
    """0: not known. Nothing is made up, and no limit of this machine is taken for the other's."""
    assert (total_memory(tmp_path), memory_limit(tmp_path), available_memory(tmp_path)) == (0, 0, 0)


@linux
def test_an_rlimit_of_this_process_counts() -> None:
    script = (
        "import resource\n"
        "from edgemoe.devices.memory import available_memory, memory_limit\n"
        "memory_limit()\n"  # the libraries are loaded by now
        "for which in (resource.RLIMIT_AS, resource.RLIMIT_DATA):\n"
        "    resource.setrlimit(which, (3 << 30, resource.RLIM_INFINITY))\n"
        "    print(memory_limit(), available_memory())\n"
        "    resource.setrlimit(which, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        limit, available = map(int, line.split())
        assert GIB < limit <= 3 * GIB
        assert available < limit
