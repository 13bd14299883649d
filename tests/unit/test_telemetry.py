import io
import json
import logging

import pytest

from core.telemetry import Metrics, configure_logging


def test_metrics_are_exposed_in_prometheus_text_format():
    metrics = Metrics()
    metrics.counter("events_total", "Events accepted.", broker='de"f').value += 2
    metrics.gauge("held", "Requests that wait.").read = lambda: 7
    latency = metrics.histogram("latency_seconds", "Time to answer.")
    latency.observe(0.004)
    latency.observe(100)
    lines = metrics.expose().splitlines()
    assert "# TYPE events_total counter" in lines
    assert 'events_total{broker="de\\"f"} 2' in lines
    assert "held 7" in lines
    assert 'latency_seconds_bucket{le="0.0025"} 0' in lines
    assert 'latency_seconds_bucket{le="0.005"} 1' in lines
    assert 'latency_seconds_bucket{le="+Inf"} 2' in lines
    assert "latency_seconds_count 2" in lines


def test_a_metric_keeps_its_kind_and_can_be_forgotten():
    metrics = Metrics()
    metrics.counter("a_total", "A.", name="x")
    with pytest.raises(ValueError, match="is a counter"):
        metrics.gauge("a_total", "A.")
    metrics.forget("a_total", name="x")
    assert 'name="x"' not in metrics.expose()


def test_a_log_line_is_one_json_object_with_its_facts():
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    try:
        configure_logging("broker", stream=stream)
        logging.getLogger("x").info("delivered", extra={"facts": {"event_id": "1"}})
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    line = json.loads(stream.getvalue())
    assert (line["process"], line["level"], line["message"], line["event_id"]) == ("broker", "info", "delivered", "1")
    assert line["time"].endswith("Z")
