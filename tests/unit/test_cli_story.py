"""How events and their stories look in text."""

import click
import pytest

from penstock.cli.story import MAX_STEPS, event_line, explanation_lines, next_steps

STORED = {
    "seq": 7,
    "broker": "default/default",
    "time": "2026-01-02T03:04:05.678901Z",
    "size": 12,
    "id": "e1",
    "type": "made",
    "source": "/test",
    "subject": None,
    "attributes": {},
    "cause": None,
    "corrupt": False,
    "deliveries": [],
}


def delivery(trigger, state, attempts=1):
    return {"trigger": f"default/{trigger}", "state": state, "status": 200, "attempts": attempts, "reason": None}


def trigger(name, state, **more):
    return {"trigger": f"default/{name}", "matched": True, "state": state, "attempts": [], "replies": [], **more}


def attempt(number, status, outcome, reason=None):
    time = "2026-01-02T03:04:06.000000Z"
    return {"number": number, "time": time, "status": status, "latency_ms": 1.25, "outcome": outcome, "reason": reason}


def plain(text):
    return click.unstyle(text)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        pytest.param({}, "03:04:05.678  made  e1", id="nobody wants it"),
        pytest.param({"subject": "cat.jpg"}, "03:04:05.678  made  cat.jpg", id="its subject, where it has one"),
        pytest.param({"cause": 3}, "03:04:05.678  ↳ made  e1", id="a reply"),
        pytest.param(
            {"deliveries": [delivery("scan", "delivered"), delivery("audit", "delivered", 3)]},
            "03:04:05.678  made  e1  ✓ scan  ✓ audit (3 attempts)",
            id="delivered",
        ),
        pytest.param({"deliveries": [delivery("scan", "pending", 0)]}, "03:04:05.678  made  e1  … scan", id="pending"),
        pytest.param({"deliveries": [delivery("scan", "retrying")]}, "03:04:05.678  made  e1  ↻ scan", id="retrying"),
        pytest.param({"deliveries": [delivery("scan", "dropped")]}, "03:04:05.678  made  e1  ✗ scan", id="dropped"),
        pytest.param({"deliveries": [delivery("scan", "repeat", 0)]}, "03:04:05.678  made  e1  ≡ scan", id="repeat"),
        pytest.param({"corrupt": True}, "03:04:05.678  corrupt  position 7 of default/default", id="corrupt"),
    ],
)
def test_an_event_is_one_line(changes, line):
    assert plain(event_line({**STORED, **changes})) == line


@pytest.mark.parametrize(
    ("told", "line"),
    [
        pytest.param(trigger("scan", "delivered"), "scan: delivered", id="delivered"),
        pytest.param(trigger("scan", "pending"), "scan: pending: on its way, or waiting for its turn", id="pending"),
        pytest.param(
            trigger("scan", "pending", waits_for='Service "scan" does not exist.'),
            'scan: pending: Service "scan" does not exist.',
            id="pending for a reason",
        ),
        pytest.param(
            trigger("scan", "dead-lettered"),
            "scan: dead-lettered: given up; the dead-letter sink has it",
            id="dead-lettered",
        ),
        pytest.param(
            trigger("scan", "not wanted", failed={"clause": "filter", "attribute": "type", "wanted": "is 'x'"}),
            "scan: not wanted: filter: type is 'x'; the event has no such attribute",
            id="no such attribute",
        ),
        pytest.param(
            trigger(
                "scan",
                "not wanted",
                failed={"clause": "filters[0]", "attribute": "type", "wanted": "is 'x'", "value": "y"},
            ),
            "scan: not wanted: filters[0]: type is 'x'; the event has 'y'",
            id="another value",
        ),
        pytest.param(trigger("scan", "delivered", matched=None), "scan: delivered (this Trigger is gone)", id="gone"),
    ],
)
def test_each_trigger_says_what_its_state_means(told, line):
    lines = [plain(each) for each in explanation_lines([{"event": STORED, "triggers": [told], "cut": False}])]
    assert lines == [
        "made",
        "id e1  source /test  stored 2026-01-02T03:04:05.678901Z at default/default, position 7, 12 bytes",
        f"└─ {line}",
    ]


def test_attempts_and_replies_hang_under_their_trigger():
    reply = {"event": {**STORED, "id": "e2", "type": "judged"}, "triggers": [], "cut": True}
    scan = trigger("scan", "delivered", attempts=[attempt(1, 200, "delivered")], replies=[reply])
    attempts = [attempt(1, 0, "retrying", "no answer came"), attempt(2, 202, "dead-lettered")]
    audit = trigger("audit", "dead-lettered", attempts=attempts)
    lines = [plain(each) for each in explanation_lines([{"event": STORED, "triggers": [scan, audit], "cut": False}])]
    assert lines[2:] == [
        "├─ scan: delivered",
        "│  attempt 1  03:04:06.000  200  1.2 ms  delivered",
        "│  reply:",
        "│  judged",
        "│  id e2  source /test  stored 2026-01-02T03:04:05.678901Z at default/default, position 7, 12 bytes",
        "│  └─ nobody wanted it: this Broker has no Trigger",
        "│  (more replies than are shown)",
        "└─ audit: dead-lettered: given up; the dead-letter sink has it",
        "   attempt 1  03:04:06.000  no answer  1.2 ms  retrying  no answer came",
        "   attempt 2  03:04:06.000  202  1.2 ms  dead-lettered (sent to the dead-letter sink)",
    ]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({}, "attempt 1  03:04:06.000  200  1.2 ms  delivered"),
        ({"revision": "scan-00002"}, "attempt 1  03:04:06.000  200 from scan-00002  1.2 ms  delivered"),
        (
            {"revision": "scan-00002", "cold_start_ms": 812.4},
            "attempt 1  03:04:06.000  200 from scan-00002  1.2 ms (cold start 812 ms)  delivered",
        ),
    ],
    ids=["told nothing", "a revision", "a cold start"],
)
def test_an_attempt_tells_who_answered_and_how_long_it_waited(told, line):
    event = {**STORED, "size": 1, "source": "/"}
    tried = trigger("scan", "delivered", attempts=[{**attempt(1, 200, "delivered"), **told}])
    lines = [plain(each) for each in explanation_lines([{"event": event, "triggers": [tried], "cut": False}])]
    assert lines[-1] == f"   {line}"


def test_what_was_given_up_comes_with_the_way_to_send_it_again():
    reply = {"event": {**STORED, "seq": 8}, "triggers": [trigger("audit", "dead")], "cut": False}
    tried = [trigger("scan", "dropped"), trigger("log", "delivered", replies=[reply]), trigger("x", "dead-lettered")]
    told = {"event": STORED, "triggers": tried, "cut": False}
    send = "Send it again, as it is or edited: penstock dlq redrive"
    assert next_steps([told]) == [f"{send} default/scan/7", f"{send} default/audit/8"]
    assert len(next_steps([told] * 9)) == MAX_STEPS
