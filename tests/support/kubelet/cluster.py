"""A whole cluster for tests: a real control plane, and nodes that run pods as local processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.support.controlplane.servers import ControlPlane, Server
from tests.support.kubelet.images import Image, Images
from tests.support.kubelet.nodes import NodeShape
from tests.support.kubelet.reader import Reader
from tests.support.netns import BRIDGE_ADDRESS, inside

__all__ = ["Cluster", "checkout_image"]

#: What a test waits for, unless it says otherwise. Nothing takes a third of it on an idle machine.
TIMEOUT_S: Final = 60.0
_POLL_S: Final = 0.05
CHECKOUT: Final = Path(__file__).resolve().parents[3]


class Cluster:
    """etcd, kube-apiserver and kube-controller-manager (`plane`), the test kubelet and the network of Services.

    `images` says what pods' images are; `use` adds to it. `kubelet` and `network` are Servers, to pause and to kill.
    """

    def __init__(self, folder: Path, *, images: Sequence[Image] = (), nodes: Sequence[NodeShape] | None = None) -> None:
        if not inside():
            raise RuntimeError(
                "run it with a network of its own: python -m tests.support.netns -- pytest tests/cluster"
            )
        self.folder = folder
        self.plane = ControlPlane(folder / "control-plane", address=BRIDGE_ADDRESS)
        self.nodes = tuple(nodes) if nodes is not None else (NodeShape(name="worker-0"), NodeShape(name="worker-1"))
        self._images = list(images)
        self._table = Images(folder / "images.json")
        self._table.write(self._images)
        self._reader = Reader(self.plane.url, self.plane.tls)
        self.kubelet = self._kubelet()
        self.network = self._network()

    def use(self, *images: Image) -> None:
        """Images that pods may name from now on; a later one of the same pattern takes the earlier one's place."""
        patterns = {image.pattern for image in images}
        self._images = [*images, *(one for one in self._images if one.pattern not in patterns)]
        self._table.write(self._images)

    def start(self) -> None:
        self.plane.start()
        self.kubelet.launch()
        self.network.launch()
        self.kubelet.wait()
        self.network.wait()

    def stop(self) -> None:
        self._reader.close()
        for server in (self.network, self.kubelet):
            server.kill()
        self.plane.stop()

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # What tests do with it

    def kubectl(self, *words: str, given: object = None, check: bool = True) -> str:
        """Run kubectl; `given` is text for its standard input, or objects to send as JSON. What it prints."""
        done = subprocess.run(
            ["kubectl", *words],
            env=self.plane.access.environment,
            input=given if given is None or isinstance(given, str) else json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * TIMEOUT_S,
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout if check else done.stdout + done.stderr

    def apply(self, *objects: object) -> None:
        self.kubectl("apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": list(objects)})

    def get(self, *words: str) -> Any:
        """An object, or a list's items, as ``kubectl get`` finds them: KIND [NAME], -n, -l, -A. Raises RuntimeError."""
        return self._reader.get(*words)

    def until(self, condition: Callable[[], object], *, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """What `condition` gives once that is true. Raises AssertionError, with all pods, where it is not in time."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := condition()):
            if time.monotonic() > deadline_s:
                pods = self.kubectl("get", "pods", "-A", "-o", "wide", check=False)
                raise AssertionError(f"not within {timeout_s:g} s: {what}\n{pods}")
            time.sleep(_POLL_S)
        return found

    @staticmethod
    def kill(pod: dict[str, Any], container: str = "") -> None:
        """End a container's process as a crash would; the first of `pod`'s containers unless one is named."""
        statuses = pod["status"]["containerStatuses"]
        status = next(one for one in statuses if container in {"", one["name"]})
        os.killpg(int(status["containerID"].rsplit("-", 2)[1]), signal.SIGKILL)

    # The servers

    def _kubelet(self) -> Server:
        folder = self.folder / "kubelet"
        folder.mkdir(parents=True, exist_ok=True)
        certificate, key = self.plane.authority.serving("kubelet", [BRIDGE_ADDRESS])
        options = {
            "kubeconfig": self.plane.access.kubeconfig,
            "folder": folder,
            "images": self.folder / "images.json",
            "nodes": msgspec.json.encode(self.nodes).decode(),
            "address": BRIDGE_ADDRESS,
            "certificate": certificate,
            "key": key,
        }
        return self._module("agent", options, self._nodes_ready)

    def _network(self) -> Server:
        return self._module("network", {"kubeconfig": self.plane.access.kubeconfig}, self._names_answer)

    def _module(self, name: str, options: dict[str, object] | dict[str, Path], ready: Callable[[], bool]) -> Server:
        words = [f"--{option}={value}" for option, value in options.items()]
        argv = [sys.executable, "-m", f"tests.support.kubelet.{name}", *words]
        return Server(name=name, argv=argv, log=self.folder / f"{name}.log", ready=ready)

    def _nodes_ready(self) -> bool:
        found = {node["metadata"]["name"]: node["status"].get("conditions", ()) for node in self.get("nodes")}
        ready = {name for name, all_of_it in found.items() if ("Ready", "True") in _truths(all_of_it)}
        return ready >= {shape.name for shape in self.nodes}

    def _names_answer(self) -> bool:
        return "refused" not in self.kubectl("--server=https://10.96.0.1", "get", "nodes", check=False)


def _truths(conditions: Sequence[dict[str, str]]) -> set[tuple[str, str]]:
    return {(one["type"], one["status"]) for one in conditions}


def checkout_image(pattern: str, *words: str, **variables: str) -> Image:
    """An image whose containers run from this checkout: `words` after its Python, with its `penstock` on the path."""
    path = f"{Path(sys.prefix) / 'bin'}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return Image(
        pattern=pattern,
        entrypoint=words and (sys.executable, *words),
        env=environment | variables,
        working_dir=str(CHECKOUT),
    )
