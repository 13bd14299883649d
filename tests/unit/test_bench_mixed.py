import msgspec

from bench.mixed import MATCHING, matching, others
from broker.resources import TriggerShape, compile_filter

EVENT = {
    "specversion": "1.0",
    "id": "cpu-1",
    "source": "/penstock/bench",
    "type": "bench.cpu",
    "time": "2026-01-01T00:00:00Z",
    "datacontenttype": "application/json",
}


def test_of_the_triggers_of_the_benchmark_its_event_matches_ten_and_no_two_of_the_others_are_the_same():
    uris = [f"http://127.0.0.1:{port}/" for port in range(1, MATCHING + 1)]
    wants, rest = (
        [compile_filter(msgspec.convert(each["spec"], TriggerShape)) for each in made]
        for made in (matching("many", uris), others("many", 2_000, uris[0]))
    )
    assert len(wants) == 10
    assert all(each.matches(EVENT) for each in wants)
    assert not any(each.matches(EVENT) for each in rest)
    assert len(set(rest)) == 2_000
