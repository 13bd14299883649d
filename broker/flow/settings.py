"""The `delivery.penstock.dev/` annotations of Triggers and Subscriptions: what each may hold, and what follows.

`kafka.eventing.knative.dev/delivery.order` is the one annotation of the kind that Knative has (its Kafka Broker's), and
is read where ours is not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from core.errors import FieldError
from core.resources import parse_go_duration, parse_iso_duration

__all__ = [
    "ANNOTATIONS",
    "FLOW_GROUP",
    "KAFKA_ORDER",
    "PARALLELISM",
    "PAUSED",
    "PLAIN",
    "Flow",
    "flow_of",
    "validate_flow",
]

FLOW_GROUP: Final = "delivery.penstock.dev"
#: What ``penstock trigger pause`` sets.
PAUSED: Final = f"{FLOW_GROUP}/paused"
#: Knative's Kafka Broker's, with the same two values.
KAFKA_ORDER: Final = "kafka.eventing.knative.dev/delivery.order"

#: Deliveries of one Trigger under way at a time, where it asks for no other number.
PARALLELISM: Final = 32
#: As many as a Trigger may have in memory (`broker.dispatch.MAX_OUTSTANDING`): more could never be under way.
MAX_PARALLELISM: Final = 1024
#: Beyond this a limit costs more than what it holds back; it is also what two cores deliver at most.
MAX_RATE: Final = 100_000.0
#: Slower than one an hour is what `delay` and `paused` are for.
MIN_RATE: Final = 1 / 3600
#: What waits for its time stays in the log, and so does what came after it: as long as what is delivered is kept.
MAX_DELAY_S: Final = 7 * 86_400.0
#: What is remembered is read back after a restart: a day of it is what that may take.
MAX_WINDOW_S: Final = 86_400.0
#: Events of one request: what fits into the receiver's own limits, at a kilobyte each.
MAX_BATCH: Final = 1000
#: How long an event waits for others in its batch: as a person would wait for an answer, at most.
BATCH_WAIT_S: Final = 1.0
MAX_BATCH_WAIT_S: Final = 300.0

#: Where a Trigger that asks for order names no attribute: those that say what belongs together, the first there is.
ORDER_KEYS: Final = ("partitionkey", "subject")

_ATTRIBUTE: Final = re.compile(r"[a-z0-9]{1,20}\Z")
_WHOLE: Final = re.compile(r"[0-9]{1,9}\Z")
_RATE: Final = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(?:/(s|m|h))?\Z")
_PER_S: Final = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """How a Trigger's events are to flow. Times in seconds.

    `order_by` are the attributes whose value is an event's key, the first that it has; None where order does not
    matter. `rate` is in events a second, None without limit; `window_s` that within which a second event of the same
    source and id is a repeat, 0 where repeats are not looked for; `batch` the events of one request, 1 where each has
    its own.
    """

    order_by: tuple[str, ...] | None = None
    parallelism: int = PARALLELISM
    rate: float | None = None
    delay_s: float = 0.0
    window_s: float = 0.0
    batch: int = 1
    batch_wait_s: float = BATCH_WAIT_S
    paused: bool = False


PLAIN: Final = Flow()


def flow_of(annotations: Mapping[str, str]) -> Flow:
    """What these annotations ask for. Raises ValueError naming the one that cannot be read."""
    prefix = f"{FLOW_GROUP}/"
    given = {name.removeprefix(prefix): text for name, text in annotations.items() if name.startswith(prefix)}
    synonym = annotations.get(KAFKA_ORDER)
    if not given and synonym is None:
        return PLAIN
    read: dict[str, Any] = {}
    for name, text in given.items():
        if name not in _READERS:
            raise ValueError(f"{prefix}{name}: is not one of {', '.join(sorted(_READERS))}")
        read[name] = _checked(f"{prefix}{name}", text, _READERS[name])
    ordered = read.get("order")
    if ordered is None:
        ordered = synonym is not None and _checked(KAFKA_ORDER, synonym, _order)
    key = read.get("order-key")
    _check_together(read, ordered)
    return Flow(
        order_by=((key,) if key is not None else ORDER_KEYS) if ordered else None,
        parallelism=read.get("parallelism", PARALLELISM),
        rate=read.get("rate"),
        delay_s=read.get("delay", 0.0),
        window_s=read.get("deduplicate", 0.0),
        batch=read.get("batch", 1),
        batch_wait_s=read.get("batch-wait", BATCH_WAIT_S),
        paused=read.get("paused", False),
    )


def validate_flow(annotations: Mapping[str, str]) -> Iterator[FieldError]:
    """The first broken rule of the annotations, where there is one."""
    try:
        flow_of(annotations)
    except ValueError as error:
        name, _, rule = str(error).partition(": ")
        yield FieldError(path=f"metadata.annotations[{name}]", rule=rule, value=annotations.get(name))


def _check_together(read: Mapping[str, Any], ordered: bool) -> None:
    if "order-key" in read and not ordered:
        raise ValueError(f"{FLOW_GROUP}/order-key: needs {FLOW_GROUP}/order to be ordered")
    if "batch-wait" in read and read.get("batch", 1) == 1:
        raise ValueError(f"{FLOW_GROUP}/batch-wait: needs {FLOW_GROUP}/batch to be 2 or more")
    if ordered and read.get("batch", 1) > 1:
        rule = "must be 1 where events are ordered: events of one key would come in one request, or wait for each other"
        raise ValueError(f"{FLOW_GROUP}/batch: {rule}")


def _checked(name: str, text: str, reader: Callable[[str], Any]) -> Any:
    try:
        return reader(text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


# ---- one value


def _order(text: str) -> bool:
    if text not in ("ordered", "unordered"):
        raise ValueError("must be ordered or unordered")
    return text == "ordered"


def _attribute(text: str) -> str:
    if _ATTRIBUTE.match(text) is None:
        raise ValueError("must be an attribute's name: 1 to 20 of a-z and 0-9")
    return text


def _between(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if _WHOLE.match(text) is None or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _rate(text: str) -> float:
    match = _RATE.match(text)
    if match is None:
        raise ValueError("must be events a second, such as 10 or 0.5, or a minute or an hour, such as 30/m or 100/h")
    rate = float(match[1]) / _PER_S[match[2]]
    if not MIN_RATE * 0.999 <= rate <= MAX_RATE:
        raise ValueError(f"must be from 1/h to {MAX_RATE:g} events a second")
    return rate


def _duration(most_s: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            seconds = parse_iso_duration(text) if text.startswith("P") else parse_go_duration(text)
        except ValueError:
            raise ValueError("must be a duration such as PT30S, 30s or 1h30m") from None
        if seconds > most_s:
            raise ValueError(f"must be at most {most_s:g} seconds")
        return seconds

    return read


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "order": _order,
    "order-key": _attribute,
    "parallelism": _between(1, MAX_PARALLELISM),
    "rate": _rate,
    "delay": _duration(MAX_DELAY_S),
    "deduplicate": _duration(MAX_WINDOW_S),
    "batch": _between(1, MAX_BATCH),
    "batch-wait": _duration(MAX_BATCH_WAIT_S),
    "paused": _flag,
}
ANNOTATIONS: Final = frozenset(f"{FLOW_GROUP}/{name}" for name in _READERS)
