"""Which source a resource asks for: the factories that the composition root hands to the harness."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from core.errors import FieldError, InvalidInput
from core.resources import KindRef, Resource
from sources.cron import CronError, Schedule, local_zone
from sources.files import Selection
from sources.folder import FolderSource
from sources.kafka.resources import KAFKA_SOURCE, kafka_spec, key_type_of
from sources.objectstore import bucket_of
from sources.ping import PingSource
from sources.port import Source, SourceContext, SourceFactory
from sources.resources import OBJECT_STORE_SOURCE, PING_SOURCE, object_store_spec, ping_spec

__all__ = ["FACTORIES"]


def _ping(resource: Resource, context: SourceContext) -> Source:
    spec = ping_spec(resource)
    try:
        schedule = Schedule.parse(spec.schedule, spec.timezone, local_zone())
    except CronError as error:
        raise InvalidInput.of(str(resource.key), [FieldError(path=f"spec.{error.field}", rule=error.rule)]) from error
    return PingSource(context=context, schedule=schedule, data=spec.payload(), content_type=spec.content_type)


def _object_store(resource: Resource, context: SourceContext) -> Source:
    spec = object_store_spec(resource)
    folder = spec.store.folder
    if folder is None:
        raise InvalidInput.of(str(resource.key), [FieldError(path="spec.store", rule="needs one store")])
    return FolderSource(
        context=context,
        bucket=bucket_of(spec),
        selection=Selection(prefix=spec.prefix, suffix=spec.suffix),
        path=str(context.root / folder.path),
        create=folder.create,
    )


def _kafka(resource: Resource, context: SourceContext) -> Source:
    try:
        from sources.kafka.member import connect  # noqa: PLC0415 - loads the client, which most platforms do without
    except ModuleNotFoundError as error:
        message = f"KafkaSource needs a Python package that is not installed: {error.name}. Install penstock[kafka]."
        raise InvalidInput(message) from error
    from sources.kafka.source import KafkaSource  # noqa: PLC0415 - as above

    return KafkaSource(context=context, spec=kafka_spec(resource), key_type=key_type_of(resource), connect=connect)


#: A source for each kind of this plane.
FACTORIES: Final[Mapping[KindRef, SourceFactory]] = MappingProxyType(
    {PING_SOURCE: _ping, OBJECT_STORE_SOURCE: _object_store, KAFKA_SOURCE: _kafka}
)
