"""``penstock serve``: one function in the foreground, as a container image runs it."""

from __future__ import annotations

import math
from typing import Final

import click

from core.errors import PenstockError
from penstock.cli.failure import Failure
from penstock.cli.options import finite
from serving.functions.standalone import serve as become

__all__ = ["serve"]

#: Where Knative's containers listen unless they are told otherwise (runtime contract, "Inbound network connectivity").
DEFAULT_PORT: Final = 8080


@click.command(short_help="Run one function in the foreground, as a container image does.")
@click.argument("folder", default=".")
@click.option("--handler", default="", metavar="MODULE:NAME", help="What to call.  [default: handle, else app]")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 in a container.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=DEFAULT_PORT,
    envvar="PORT",
    show_default=True,
    help="Where to listen; 0 takes a free port.",
)
@click.option(
    "--drain",
    type=click.FloatRange(0),
    callback=lambda _context, _option, value: finite(value, math.inf),
    default=30.0,
    show_default=True,
    help="Seconds to finish requests in.",
)
def serve(folder: str, handler: str, host: str, port: int, drain: float) -> None:
    """Serve the function in FOLDER over HTTP, without a platform: what the image of a function runs in a cluster, and
    a quick try on a laptop. SIGTERM finishes the requests under way and ends it.

    \b
    Examples:
      penstock serve examples/pictures/functions/audit --port 9000
      CMD ["penstock", "serve", "--host", "0.0.0.0", "/function"]      (in a Containerfile)
    """
    try:
        become(folder, handler=handler, host=host, port=port, drain_s=drain)
    except PenstockError as error:
        raise Failure(str(error)) from error
    except OSError as error:
        raise Failure(f"Cannot listen on {host}:{port}: {error.strerror}.", hint="Choose another --port.") from error
