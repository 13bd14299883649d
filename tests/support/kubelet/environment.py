"""A container's environment and command, put together as the kubelet does. Pure: what is referred to is given."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tests.support.kubelet.spec import Container, EnvFrom, EnvVar, KeySelector, Pod

__all__ = ["ConfigError", "References", "command", "environment", "expand", "field_value", "wanted"]

_REFERENCE: Final = re.compile(r"\$\$|\$\(([^()]+)\)")


class ConfigError(Exception):
    """What a container refers to does not exist: it waits with CreateContainerConfigError and is tried again."""


@dataclass(frozen=True, kw_only=True)
class References:
    """The data of the ConfigMaps and Secrets that exist, by name."""

    config_maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def decoded(secret: Mapping[str, Any]) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in (secret.get("data") or {}).items()}


def wanted(container: Container) -> tuple[set[str], set[str]]:
    """The names of the ConfigMaps and of the Secrets that the container's environment refers to."""
    config_maps, secrets = set(), set()
    for variable in container.env:
        source = variable.value_from
        if source is not None and source.config_map_key_ref is not None:
            config_maps.add(source.config_map_key_ref.name)
        if source is not None and source.secret_key_ref is not None:
            secrets.add(source.secret_key_ref.name)
    for whole in container.env_from:
        if whole.config_map_ref is not None:
            config_maps.add(whole.config_map_ref.name)
        if whole.secret_ref is not None:
            secrets.add(whole.secret_ref.name)
    return config_maps, secrets


def environment(
    pod: Pod, container: Container, references: References, base: Mapping[str, str], facts: Mapping[str, str]
) -> dict[str, str]:
    """The whole environment: `base` is the image's and the cluster's, `facts` what a fieldRef finds in the status.

    Raises ConfigError.
    """
    result = dict(base)
    for whole in container.env_from:
        result |= _whole(whole, references)
    for variable in container.env:
        value = _value(pod, container, variable, references, facts)
        if value is None:
            continue
        result[variable.name] = expand(value, result) if variable.value_from is None else value
    return result


def command(
    container: Container, variables: Mapping[str, str], entrypoint: tuple[str, ...], arguments: tuple[str, ...]
) -> list[str]:
    """`command` takes the place of the image's entry point and its arguments, `args` that of its arguments."""
    own = [expand(word, variables) for word in container.command]
    own_arguments = [expand(word, variables) for word in container.args]
    if own:
        return own + own_arguments
    return [*entrypoint, *(own_arguments or arguments)]


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`$(NAME)` is the variable, unchanged where there is none; `$$` is a dollar."""

    def one(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(one, text)


def field_value(pod: Pod, path: str, facts: Mapping[str, str]) -> str:
    """What the downward API finds under `path`. Raises ConfigError where it knows no such field."""
    if path in facts:
        return facts[path]
    keyed = re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path)
    if keyed is not None:
        return (pod.metadata.labels if keyed[1] == "labels" else pod.metadata.annotations).get(keyed[2], "")
    metadata = pod.metadata
    known = {
        "metadata.name": metadata.name,
        "metadata.namespace": metadata.namespace,
        "metadata.uid": metadata.uid,
        "metadata.labels": _lines(metadata.labels),
        "metadata.annotations": _lines(metadata.annotations),
        "spec.nodeName": pod.spec.node_name,
        "spec.serviceAccountName": pod.spec.service_account_name,
    }
    if path not in known:
        raise ConfigError(f"unsupported field path {path!r}")
    return known[path]


def _lines(values: Mapping[str, str]) -> str:
    return "\n".join(f'{key}="{value}"' for key, value in sorted(values.items()))


def _whole(source: EnvFrom, references: References) -> dict[str, str]:
    for reference, data, what in (
        (source.config_map_ref, references.config_maps, "configmap"),
        (source.secret_ref, references.secrets, "secret"),
    ):
        if reference is None:
            continue
        if reference.name not in data:
            if reference.optional:
                return {}
            raise ConfigError(f'{what} "{reference.name}" not found')
        return {source.prefix + key: value for key, value in data[reference.name].items()}
    return {}


def _value(
    pod: Pod, container: Container, variable: EnvVar, references: References, facts: Mapping[str, str]
) -> str | None:
    source = variable.value_from
    if source is None:
        return variable.value
    if source.field_ref is not None:
        return field_value(pod, source.field_ref.field_path, facts)
    if source.config_map_key_ref is not None:
        return _keyed(source.config_map_key_ref, references.config_maps, "configmap")
    if source.secret_key_ref is not None:
        return _keyed(source.secret_key_ref, references.secrets, "secret")
    if source.resource_field_ref is not None:
        kind, _, name = source.resource_field_ref.resource.partition(".")
        values = container.resources.limits if kind == "limits" else container.resources.requests
        return str(values.get(name, 0))
    return ""


def _keyed(selector: KeySelector, data: Mapping[str, Mapping[str, str]], what: str) -> str | None:
    value = data.get(selector.name, {}).get(selector.key)
    if value is None and not selector.optional:
        raise ConfigError(f'key "{selector.key}" of {what} "{selector.name}" not found')
    return value
