"""A pod's volumes as folders of the machine, to be bound into its containers."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.kubelet.api import Api, ApiError
from tests.support.kubelet.environment import ConfigError, field_value
from tests.support.kubelet.rootfs import Mount
from tests.support.kubelet.spec import (
    ConfigMapVolume,
    Container,
    DownwardVolume,
    Item,
    Pod,
    ProjectedSource,
    SecretVolume,
    TokenVolume,
    Volume,
)

__all__ = ["mounts", "provide"]


async def provide(api: Api, pod: Pod, folder: Path, facts: Mapping[str, str]) -> dict[str, Path]:
    """Every volume's folder. Raises ConfigError where one refers to what does not exist yet."""
    return {volume.name: await _volume(api, pod, volume, folder / volume.name, facts) for volume in pod.spec.volumes}


def mounts(container: Container, volumes: Mapping[str, Path]) -> list[Mount]:
    result = []
    for mount in container.volume_mounts:
        if mount.name not in volumes:
            raise ConfigError(f'volume "{mount.name}" is not in the pod')
        source = volumes[mount.name]
        if mount.sub_path:
            source /= mount.sub_path
            if not source.exists():
                source.mkdir(parents=True)
        result.append(Mount(source=source, target=mount.mount_path, read_only=mount.read_only))
    return result


async def _volume(api: Api, pod: Pod, volume: Volume, folder: Path, facts: Mapping[str, str]) -> Path:
    if volume.host_path is not None:
        return Path(volume.host_path.path)
    if volume.persistent_volume_claim is not None:
        folder = await _claimed(api, pod, volume.persistent_volume_claim.claim_name)
    folder.mkdir(parents=True, exist_ok=True)
    # Any user may write, whose group the manifest would have to say.
    folder.chmod(0o777)
    files: dict[str, bytes] = {}
    if volume.config_map is not None:
        files = await _config_map(api, pod, volume.config_map)
    elif volume.secret is not None:
        files = await _secret(api, pod, volume.secret)
    elif volume.downward_api is not None:
        files = _downward(pod, volume.downward_api, facts)
    elif volume.projected is not None:
        for source in volume.projected.sources:
            files |= await _projected(api, pod, source, facts)
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


async def _claimed(api: Api, pod: Pod, name: str) -> Path:
    """The folder of the volume that the claim is bound to."""
    claim = await _object(api, pod, "persistentvolumeclaims", name, optional=False)
    bound = claim["spec"].get("volumeName") if (claim.get("status") or {}).get("phase") == "Bound" else ""
    if not bound:
        raise ConfigError(f'persistentvolumeclaim "{name}" is not bound')
    volume = await api.get(f"/api/v1/persistentvolumes/{bound}")
    return Path(volume["spec"]["hostPath"]["path"])


async def _projected(api: Api, pod: Pod, source: ProjectedSource, facts: Mapping[str, str]) -> dict[str, bytes]:
    if source.config_map is not None:
        return await _config_map(api, pod, source.config_map)
    if source.secret is not None:
        return await _secret(api, pod, source.secret)
    if source.service_account_token is not None:
        return await _token(api, pod, source.service_account_token)
    if source.downward_api is not None:
        return _downward(pod, source.downward_api, facts)
    return {}


async def _config_map(api: Api, pod: Pod, source: ConfigMapVolume) -> dict[str, bytes]:
    found = await _object(api, pod, "configmaps", source.name, optional=source.optional)
    data = {key: value.encode() for key, value in (found.get("data") or {}).items()}
    data |= {key: base64.b64decode(value) for key, value in (found.get("binaryData") or {}).items()}
    return _items(data, source.items, f'configmap "{source.name}"', optional=source.optional)


async def _secret(api: Api, pod: Pod, source: SecretVolume) -> dict[str, bytes]:
    name = source.secret_name or source.name
    found = await _object(api, pod, "secrets", name, optional=source.optional)
    data = {key: base64.b64decode(value) for key, value in (found.get("data") or {}).items()}
    return _items(data, source.items, f'secret "{name}"', optional=source.optional)


async def _token(api: Api, pod: Pod, source: TokenVolume) -> dict[str, bytes]:
    metadata = pod.metadata
    path = f"/api/v1/namespaces/{metadata.namespace}/serviceaccounts/{pod.spec.service_account_name}/token"
    spec: dict[str, Any] = {
        "expirationSeconds": source.expiration_seconds,
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": metadata.name, "uid": metadata.uid},
    }
    if source.audience:
        spec["audiences"] = [source.audience]
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    try:
        answer = await api.create(path, request)
    except ApiError as error:
        raise ConfigError(f"no token for service account {pod.spec.service_account_name}: {error}") from error
    return {source.path: answer["status"]["token"].encode()}


def _downward(pod: Pod, source: DownwardVolume, facts: Mapping[str, str]) -> dict[str, bytes]:
    return {
        item.path: field_value(pod, item.field_ref.field_path, facts).encode()
        for item in source.items
        if item.field_ref is not None
    }


def _items(data: dict[str, bytes], items: tuple[Item, ...], what: str, *, optional: bool) -> dict[str, bytes]:
    if not items:
        return data
    absent = [item.key for item in items if item.key not in data]
    if absent and not optional:
        raise ConfigError(f"{what} has no key {absent[0]!r}")
    return {item.path: data[item.key] for item in items if item.key in data}


async def _object(api: Api, pod: Pod, kind: str, name: str, *, optional: bool) -> dict[str, Any]:
    try:
        found: dict[str, Any] = await api.get(f"/api/v1/namespaces/{pod.metadata.namespace}/{kind}/{name}")
    except ApiError as error:
        if error.status == 404 and optional:
            return {}
        raise ConfigError(f'{kind.removesuffix("s")} "{name}": {error}') from error
    return found
