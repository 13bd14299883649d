"""Which user a container runs as, by its manifest and its image. Pure, but for what the machine allows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.kubelet.environment import ConfigError
from tests.support.kubelet.images import Image
from tests.support.kubelet.spec import Container, Pod

__all__ = ["Identity", "identity", "users_allowed"]


@dataclass(frozen=True, kw_only=True)
class Identity:
    """`user` and `group` are numbers; `groups` are the further ones, the volumes' among them."""

    user: int = 0
    group: int = 0
    groups: tuple[int, ...] = ()


#: Who the tests themselves are.
ROOT: Final = Identity()


def identity(pod: Pod, container: Container, image: Image) -> Identity:
    """The container's own word counts before the pod's, and that before the image's.

    Raises ConfigError, as a kubelet refuses, where it is to be anybody but root and nothing says who.
    """
    whole, own = pod.spec.security_context, container.security_context
    user = next((one for one in (own.run_as_user, whole.run_as_user) if one is not None), image.user)
    group = next((one for one in (own.run_as_group, whole.run_as_group) if one is not None), 0)
    not_root = own.run_as_non_root if own.run_as_non_root is not None else whole.run_as_non_root
    if not_root and user == 0:
        raise ConfigError("container has runAsNonRoot and image will run as root")
    groups = (*((whole.fs_group,) if whole.fs_group is not None else ()), *whole.supplemental_groups)
    return Identity(user=user, group=group, groups=groups)


def users_allowed(uid_map: str) -> bool:
    """Whether the machine has other users than root, from /proc/self/uid_map: a user's own namespace has but one."""
    return sum(int(line.split()[2]) for line in uid_map.splitlines()) > 1


USERS_ALLOWED: Final = users_allowed(Path("/proc/self/uid_map").read_text())
