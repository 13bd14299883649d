"""How large a topic is on its leader's disk: DescribeLogDirs, which the client does not have.

Source: the Kafka protocol guide, API key 35; version 1 is the oldest that Kafka 4 takes.
"""

from __future__ import annotations

from typing import Any, Final

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Int64, Schema, String

__all__ = ["DescribeLogDirs", "size_in"]

_NAME: Final = String("utf-8")


class _Response(Response):  # type: ignore[misc]  # the client has no types
    API_KEY = 35
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            Array(
                ("error_code", Int16),
                ("log_dir", _NAME),
                (
                    "topics",
                    Array(
                        ("name", _NAME),
                        (
                            "partitions",
                            Array(("partition", Int32), ("size", Int64), ("offset_lag", Int64), ("is_future", Boolean)),
                        ),
                    ),
                ),
            ),
        ),
    )


class _Struct(RequestStruct):  # type: ignore[misc]  # as above
    API_KEY = 35
    API_VERSION = 1
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(("topics", Array(("topic", _NAME), ("partitions", Array(Int32)))))


class DescribeLogDirs(Request[_Struct]):  # type: ignore[misc]  # as above
    API_KEY = 35

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[_Struct]) -> _Struct:
        return request_struct_class([(self._topic, [0])])


def size_in(answer: Any) -> int:
    """The bytes that an answer tells of."""
    return sum(
        size
        for error, _, topics in answer.results
        if error == 0
        for _, partitions in topics
        for _, size, _, is_future in partitions
        if not is_future
    )
