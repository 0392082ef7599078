"""The files in which the system says what this process may take: its own, and those of its control groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")
"""The folder below which the system's own files are read (proc, sys)."""


def system_lines(path: str) -> list[str]:
    """The lines of one of the system's files; none where there is no such file."""
    try:
        return (ROOT / path).read_text().splitlines()
    except OSError:
        return []


def control_groups(controller: str) -> Iterator[tuple[str, Path]]:
    """Folders of this process's control group and of those around it, the innermost first, each with the name of its
    hierarchy: "" in version 2 of control groups, which has one for all, and the controller's in version 1, which has
    one for each.

    In a container its own group may be where the groups begin, under whatever name it has outside.

    Args:
        controller: the kind of limits, such as "memory" or "cpu".
    """
    own = {"": "/", controller: "/"}
    for line in system_lines("proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for name in own.keys() & controllers.split(","):
            own[name] = path
    for hierarchy, path in own.items():
        root = ROOT / "sys/fs/cgroup" / hierarchy
        group = root / path.strip("/")
        while True:
            if group.is_dir():
                yield hierarchy, group
            if group == root or root not in group.parents:
                break
            group = group.parent
