"""Hands events for one Trigger to the ingress, as the one process does that may be asked by people."""

from __future__ import annotations

from typing import Final, Protocol
from urllib.parse import urlencode

from broker.directed import POSITION_HEADER, Wish
from core.errors import InvalidInput, NotFound, Unavailable
from core.events import CloudEvent, to_binary
from core.net.names import Names
from core.net.types import Address, Headers, NetError, Response

__all__ = ["DEFAULT_INGRESS", "Forward", "Requester"]

#: Where every Broker's address begins unless a composition says otherwise.
DEFAULT_INGRESS: Final = "http://broker-ingress.knative-eventing.svc.cluster.local"
#: An event is on disk within milliseconds; a broker process that starts anew takes a second or two.
TIMEOUT_S: Final = 10.0
#: Of a refusal's text.
MAX_ANSWER_BYTES: Final = 16 * 1024


class Requester(Protocol):
    """What this needs of `core.net.client.Client`."""

    async def request(  # noqa: PLR0913 - as the client has it
        self,
        address: Address,
        method: bytes,
        target: bytes,
        headers: Headers,
        body: bytes,
        *,
        timeout_s: float,
        max_bytes: int,
        encoded_headers: bytes = b"",
        tls: bool = False,
    ) -> Response: ...


class Forward:
    """The ingress at the URL `ingress`, by the platform's `names`."""

    def __init__(self, client: Requester, names: Names, ingress: str = DEFAULT_INGRESS) -> None:
        self._client = client
        self._names = names
        self._ingress = ingress

    async def send(self, broker: str, trigger: str, event: CloudEvent, wish: Wish) -> int:
        """Have `event` stored for one Trigger of a Broker (``namespace/name``) alone; its position. Raises NotFound,
        InvalidInput, and Unavailable."""
        headers, body = to_binary(event)
        answer = await self._ask(b"POST", f"/{broker}/triggers/{trigger}", wish, headers, body)
        return int(answer.header(POSITION_HEADER) or 0)

    async def discard(self, broker: str, position: int, wish: Wish) -> None:
        """Note an undelivered event as dropped by hand. Raises as `send`."""
        await self._ask(b"DELETE", f"/{broker}/undelivered/{position}", wish, [], b"")

    async def _ask(self, method: bytes, path: str, wish: Wish, headers: Headers, body: bytes) -> Response:
        query = {"revision": wish.revision, "cause": wish.cause, "of": wish.of, "left": wish.left if wish.of else None}
        given = urlencode({name: value for name, value in query.items() if value is not None})
        target = self._names.target(f"{self._ingress}{path}?{given}")
        try:
            answer = await self._client.request(
                target.address,
                method,
                target.path,
                [(b"host", target.host), *headers],
                body,
                timeout_s=TIMEOUT_S,
                max_bytes=MAX_ANSWER_BYTES,
                tls=target.tls,
            )
        except NetError as error:
            raise Unavailable(f"The broker does not answer: {error} Try again in a second.") from error
        if answer.status == 202:
            return answer
        text = answer.body.decode("utf-8", "replace").strip() or f"The broker answered {answer.status}."
        if answer.status == 404:
            raise NotFound(text)
        if 400 <= answer.status < 500:
            raise InvalidInput(text)
        raise Unavailable(text)
