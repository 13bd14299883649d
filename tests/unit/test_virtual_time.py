import asyncio
import time

import pytest

from tests.support.virtual_time import VirtualClock, run_virtual


def test_an_hour_passes_at_once_and_in_order():
    order = []

    async def wait(seconds: float) -> None:
        await asyncio.sleep(seconds)
        order.append((seconds, VirtualClock(0).now()))

    async def main() -> None:
        await asyncio.gather(wait(3600), wait(1), wait(60))

    began = time.monotonic()
    run_virtual(main())
    assert [seconds for seconds, _ in order] == [1, 60, 3600]
    assert [seen for _, seen in order] == pytest.approx([1, 60, 3600])
    assert time.monotonic() - began < 60


def test_a_wait_without_end_is_reported_as_a_deadlock():
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(main())
