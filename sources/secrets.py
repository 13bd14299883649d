"""What a Secret holds, read from the store when a source needs it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from core.control.port import ResourceStore
from core.errors import FieldError, InvalidInput
from core.resources import Key
from core.resources.builtin import SECRET

__all__ = ["read_secret"]


async def read_secret(store: ResourceStore, namespace: str, name: str) -> Mapping[str, bytes]:
    """Its values by key: ``data`` in Base64, and what ``stringData`` states, which comes first (Kubernetes' rule).

    Raises NotFound, Unavailable, and InvalidInput where a value is not Base64.
    """
    body = (await store.get(Key(SECRET, namespace, name))).body
    found: dict[str, bytes] = {}
    for key, value in _texts(body.get("data")).items():
        try:
            found[key] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError) as error:
            rule = f"must be Base64 (RFC 4648): {error}"
            raise InvalidInput.of(f'Secret "{name}"', [FieldError(path=f"data[{key}]", rule=rule)]) from error
    found.update((key, value.encode()) for key, value in _texts(body.get("stringData")).items())
    return found


def _texts(held: object) -> dict[str, str]:
    """The texts of a mapping; a Secret's body is taken as it was sent, in any shape."""
    if not isinstance(held, dict):
        return {}
    return {str(key): value for key, value in held.items() if isinstance(value, str)}
