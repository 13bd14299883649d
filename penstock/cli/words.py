"""What a person names on the command line: ``ksvc``, ``ksvc scan``, ``ksvc/scan trigger/scan``, ``brokers,triggers``,
``all``."""

from __future__ import annotations

from collections.abc import Sequence

import click

from core.resources import Kind, Registry
from penstock.cli.failure import NOT_FOUND, Failure

__all__ = ["Named", "find_kind", "parse_words", "registry", "title"]

#: A kind, and the name of one resource of it or None for all.
Named = tuple[Kind, str | None]


def registry() -> Registry:
    from penstock.kinds import registry as made  # noqa: PLC0415 - loads every plane's kinds; `--help` does without

    return made()


def parse_words(words: Sequence[str], kinds: Registry) -> list[Named]:
    """What the arguments name. Raises Failure for an unknown kind, UsageError where they do not fit together."""
    if not any("/" in word for word in words):
        first, *names = words
        chosen = [kind for word in first.split(",") for kind in _kinds(word, kinds)]
        if names and len(chosen) > 1:
            raise click.UsageError(f"{first!r} is more than one kind; write KIND/NAME to name one of each.")
        return [(kind, name) for kind in chosen for name in names or (None,)]
    found: list[Named] = []
    for word in words:
        kind, slash, name = word.partition("/")
        if not slash or not kind or not name or "/" in name:
            raise click.UsageError(f"{word!r} must be KIND/NAME, as the others are.")
        found.append((find_kind(kind, kinds), name))
    return found


def find_kind(word: str, kinds: Registry) -> Kind:
    """Raises Failure that lists the kinds there are."""
    found = kinds.find(word)
    if found is None:
        known = ", ".join(
            sorted(
                f"{kind.plural} ({'/'.join(kind.short_names)})" if kind.short_names else kind.plural
                for kind in kinds
                if not kind.internal
            )
        )
        raise Failure(f"There is no kind {word!r}.", hint=f"Known are: {known}", code=NOT_FOUND)
    return found


def title(kind: Kind, name: str) -> str:
    """As kubectl names an object: ``trigger.eventing.knative.dev/scan``."""
    return f"{kind.singular}.{kind.ref.group}/{name}" if kind.ref.group else f"{kind.singular}/{name}"


def _kinds(word: str, kinds: Registry) -> list[Kind]:
    """The kind of that name, or all of a category such as ``all`` or ``eventing``."""
    if kinds.find(word) is None:
        category = [kind for kind in kinds if word in kind.categories]
        if category:
            return category
    return [find_kind(word, kinds)]
