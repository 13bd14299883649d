"""Options that several commands have."""

from __future__ import annotations

import math

import click

__all__ = ["finite", "kafka_servers"]


def kafka_servers(_context: click.Context, _option: click.Parameter, value: str | None) -> str | None:
    """Where a Kafka is, refused here where it cannot be read."""
    from broker.log.kafka.address import address_of  # noqa: PLC0415 - only where it is given

    if value:
        try:
            address_of(value)
        except ValueError as error:
            raise click.BadParameter(f"{error}. Write host:port, with commas between several.") from error
    return value


def finite(value: float, most: float) -> float:
    """`value`, which is at most `most`: click's ranges let "nan" through."""
    if math.isnan(value):
        raise click.BadParameter(f"{value} is not in the range 0<=x<={most:g}.")
    return value
