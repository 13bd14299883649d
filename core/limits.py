"""Limits that more than one room needs, each with its reason. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

#: The head of one HTTP message: nginx takes 4 x 8 KiB, Node 16 KiB; binary-mode events carry their attributes here.
MAX_HEAD_BYTES: Final = 64 * 1024

#: Header lines in one head; CloudEvents asks for attributes to be few (spec 1.0.2, "size limits").
MAX_HEADERS: Final = 200

#: One event. CloudEvents 1.0.2 requires 64 KiB to be forwarded; Kafka's and Knative's default is 1 MiB.
MAX_EVENT_BYTES: Final = 1024 * 1024

#: A batch of events in one request: as many as are read without holding up other senders (some 10 ms).
MAX_BATCH_EVENTS: Final = 1000

#: A batch of events as JSON: several of the largest events, and little enough that many senders may do so at once.
MAX_BATCH_BYTES: Final = 4 * MAX_EVENT_BYTES

#: An event's attributes as headers: what is left of a head for the other ones of a delivery.
MAX_ATTRIBUTES_BYTES: Final = MAX_HEAD_BYTES - 4 * 1024
MAX_ATTRIBUTES: Final = MAX_HEADERS - 20

#: One resource as JSON; etcd's (and so Kubernetes') limit is 1.5 MiB.
MAX_RESOURCE_BYTES: Final = 1536 * 1024

#: How deep lists and mappings of a document may lie in each other. What reads documents recurses, libyaml's composer on
#: the C stack, which ends the process where it overflows; people write less than twenty levels.
MAX_DOCUMENT_DEPTH: Final = 100

#: A response that a delivery will read (a reply event, or an error body to quote in a dead letter).
MAX_REPLY_BYTES: Final = MAX_EVENT_BYTES + MAX_HEAD_BYTES

#: Requests of one revision that wait for an instance (Knative's activator queue depth).
MAX_HELD_REQUESTS: Final = 10_000

#: Time for a whole head to arrive after its first byte: ends slow-loris senders.
HEAD_TIMEOUT_S: Final = 10.0

#: A keep-alive connection without a request is closed after this long; longer than common client pools keep theirs.
IDLE_TIMEOUT_S: Final = 75.0

#: A TCP connection on one machine or within a cluster that takes longer is not coming.
CONNECT_TIMEOUT_S: Final = 5.0

#: One listener's open connections: below the usual hard file limit (1,048,576), above the soft one; start-up raises it.
MAX_CONNECTIONS: Final = 16_384
