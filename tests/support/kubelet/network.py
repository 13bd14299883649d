"""The process that makes Services work: follows Services and EndpointSlices, forwards connections, answers names."""

from __future__ import annotations

import argparse
import asyncio
import logging
from pathlib import Path
from typing import Any, Generic, TypeVar

import uvloop

from tests.support.kubelet.api import Api
from tests.support.kubelet.dns import NameServer
from tests.support.kubelet.proxy import Proxy
from tests.support.kubelet.sandbox import DNS_ADDRESS
from tests.support.kubelet.services import Names, forwards, names
from tests.support.kubelet.spec import EndpointSlice, Service, parse

__all__ = ["main"]

T = TypeVar("T", Service, EndpointSlice)


class Mirror(Generic[T]):
    """A collection as the API server has it; sets `changed` with each change."""

    def __init__(self, kind: type[T], changed: asyncio.Event) -> None:
        self.items: dict[str, T] = {}
        self.synced = False
        self._kind: type[T] = kind
        self._changed = changed

    def reset(self, items: list[Any]) -> None:
        self.items = {item["metadata"]["uid"]: parse(self._kind, item) for item in items}
        self.synced = True
        self._changed.set()

    def change(self, kind: str, item: Any) -> None:
        if kind == "DELETED":
            self.items.pop(item["metadata"]["uid"], None)
        else:
            self.items[item["metadata"]["uid"]] = parse(self._kind, item)
        self._changed.set()


async def run(kubeconfig: Path) -> None:
    changed = asyncio.Event()
    services, slices = Mirror(Service, changed), Mirror(EndpointSlice, changed)
    proxy, current = Proxy(), [Names()]
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: NameServer(lambda: current[0]), local_addr=(DNS_ADDRESS, 53))

    async def apply() -> None:
        while True:
            await changed.wait()
            changed.clear()
            if services.synced and slices.synced:
                current[0] = names(services.items.values(), slices.items.values())
                await proxy.apply(forwards(services.items.values(), slices.items.values()))

    async with Api(kubeconfig) as api, asyncio.TaskGroup() as group:
        group.create_task(api.follow("/api/v1/services", services.change, services.reset))
        path = "/apis/discovery.k8s.io/v1/endpointslices"
        group.create_task(api.follow(path, slices.change, slices.reset))
        group.create_task(apply())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.support.kubelet.network")
    parser.add_argument("--kubeconfig", type=Path, required=True)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    uvloop.run(run(parser.parse_args().kubeconfig))


if __name__ == "__main__":
    main()
