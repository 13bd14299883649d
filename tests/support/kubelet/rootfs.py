"""A container's file system: the machine's own, with what is written kept in memory, and volumes bound into it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.kubelet.identity import ROOT, USERS_ALLOWED, Identity

__all__ = ["Mount", "closed_folders", "root_script", "shared_mounts"]

#: What a container may write outside its volumes. It is in memory.
_SCRATCH: Final = "256m"
#: Parts of the machine that a container does not see as they are.
_NOT_SHARED: Final = ("/proc", "/sys", "/dev", "/run", "/tmp", "/mnt", "/etc")

#: Where the tests run as root: one overlay, and the machine's other file systems bound into it.
_WHOLE: Final = """
mkdir $root/upper $root/work
mount -t overlay overlay -o lowerdir=/,upperdir=$root/upper,workdir=$root/work $top
"""
_WHOLE_READ_ONLY: Final = "mount -o remount,ro $top"
#: In a user's own namespace a file system that holds others cannot be below an overlay, and `/` does: one for each
#: folder of it, and what holds others is bound as it is.
_IN_PIECES: Final = """
mount --bind $top $top
mkdir $root/upper $root/work
for entry in /*; do
    name=${entry#/}
    if [ -L $entry ]; then cp -P $entry $top/; continue; fi
    [ -d $entry ] || continue
    mkdir $top/$name
    case $name in proc|sys|dev|run|mnt) continue ;; tmp) chmod 1777 $top/tmp; continue ;; esac
    mkdir $root/upper/$name $root/work/$name
    layers=lowerdir=$entry,upperdir=$root/upper/$name,workdir=$root/work/$name
    mount -t overlay overlay -o $layers,userxattr $top/$name 2>/dev/null || mount --rbind $entry $top/$name
done
"""
_PIECES_READ_ONLY: Final = """
for entry in $top/*; do
    case $entry in */proc|*/sys|*/dev) continue ;; esac
    ! mountpoint -q $entry || mount -o remount,bind,ro $entry
done
mount -o remount,bind,ro $top
"""


@dataclass(frozen=True, kw_only=True)
class Mount:
    source: Path
    target: str
    read_only: bool = False


def root_script(
    *,
    root: Path,
    hostname: str,
    mounts: list[Mount],
    files: dict[str, Path],
    shared: list[str],
    read_only: bool,
    identity: Identity = ROOT,
    opened: Sequence[str] = (),
    in_pieces: bool = not USERS_ALLOWED,
) -> str:
    """A shell script that makes the container's file system at `root`, and runs "$@" in it.

    It runs in a mount namespace of its own. $1 is the working directory. `files` are copied in; `shared` are the
    machine's own file systems that it sees, `opened` the folders that only root can enter there and everybody here.
    """
    top = root / "root"
    lines = [
        "set -e",
        f"root={_quoted(root)} top={_quoted(top)}",
        f"hostname {shlex.quote(hostname)}",
        f"mount -t tmpfs -o size={_SCRATCH} tmpfs $root",
        "mkdir $top",
        _IN_PIECES if in_pieces else _WHOLE,
    ]
    if opened:
        lines.append(f"chmod a+rx {' '.join(_inside(top, path) for path in opened)}")
    lines += [f"mount --rbind {_quoted(path)} {_inside(top, path)}" for path in ("/proc", "/sys", "/dev")]
    if not in_pieces:
        lines += [f"mount --rbind {_quoted(path)} {_inside(top, path)}" for path in shared]
    for target, source in files.items():
        lines += [f"rm -f {_inside(top, target)}", f"cp {_quoted(source)} {_inside(top, target)}"]
    # Outer mount points first, so that they hide no inner ones. All are made before the root is read-only, and inner
    # ones again, in what an outer one brought.
    inward = sorted(mounts, key=lambda one: one.target)
    lines += [_mount_point(top, mount) for mount in inward]
    if read_only:
        lines.append(_PIECES_READ_ONLY if in_pieces else _WHOLE_READ_ONLY)
    for mount in inward:
        target = _target(top, mount)
        lines += [
            f"test -e {target} || {{ {_mount_point(top, mount)}; }}",
            f"mount --bind {_quoted(mount.source)} {target}",
        ]
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro {target}")
    become = f"--userspec={identity.user}:{identity.group}"
    if identity.groups:
        become += f" --groups={','.join(map(str, identity.groups))}"
    lines.append(
        f'exec chroot {become if identity != ROOT else ""} {_quoted(top)} /bin/sh -c \'cd "$0" && exec "$@"\' "$@"'
    )
    return "\n".join(lines) + "\n"


def _target(top: Path, mount: Mount) -> str:
    """Links are the machine's own, and absolute ones lead out of the container's root: /var/run is one."""
    return _inside(top, os.path.realpath(mount.target))


def _mount_point(top: Path, mount: Mount) -> str:
    target = _target(top, mount)
    return f"mkdir -p {target}" if mount.source.is_dir() else f"mkdir -p $(dirname {target}); : >> {target}"


def shared_mounts(mountinfo: str) -> list[str]:
    """The machine's outermost file systems besides `/` that hold programs or a checkout, from /proc/self/mountinfo."""
    points = sorted({line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()} - {"/"})
    kept: list[str] = []
    for point in points:
        outer = (*_NOT_SHARED, *kept)
        if not any(point == one or point.startswith(one + "/") for one in outer):
            kept.append(point)
    return kept


def closed_folders(wanted: Iterable[str], shared: Sequence[str]) -> list[str]:
    """Those on the way to what is wanted that others than their owner cannot enter; `shared` stay as they are."""
    ways = {str(way) for path in wanted for way in (Path(path), *Path(path).parents)}
    ways = {way for way in ways if not any(way == one or way.startswith(one + "/") for one in shared)}
    return sorted(way for way in ways if Path(way).is_dir() and Path(way).stat().st_mode & 0o005 != 0o005)


def _quoted(path: Path | str) -> str:
    return shlex.quote(str(path))


def _inside(top: Path, path: str) -> str:
    return shlex.quote(f"{top}/{path.lstrip('/')}")
