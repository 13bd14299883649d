"""When an event that is on its way is shown."""

from penstock.cli.settling import AWAITING_S, PATIENCE_S, QUIET_S, Settling


def event(seq, *states):
    deliveries = [{"trigger": f"t{n}", "state": state} for n, state in enumerate(states)]
    return {"seq": seq, "broker": "default/default", "deliveries": deliveries, "next": str(seq)}


def shown(settling, now_s, *events, following="9"):
    return [each["seq"] for each in settling.due(events, following, now_s)]


def test_an_event_is_shown_once_it_has_been_settled_for_a_moment():
    settling = Settling("4")
    assert shown(settling, 0.0, event(5, "delivered")) == []
    assert settling.position == "4"
    assert shown(settling, QUIET_S, event(5, "delivered"), following="5") == [5]
    assert settling.position == "5"
    assert shown(settling, QUIET_S + 1) == []


def test_a_change_begins_the_moment_anew():
    settling = Settling("0")
    assert shown(settling, 0.0, event(1, "delivered")) == []
    assert shown(settling, 0.5, event(1, "delivered", "delivered")) == []
    assert shown(settling, 0.5 + QUIET_S - 0.01, event(1, "delivered", "delivered")) == []
    assert shown(settling, 0.5 + QUIET_S, event(1, "delivered", "delivered")) == [1]


def test_what_waits_or_is_retried_is_shown_as_it_stands_when_patience_ends():
    for state in ("pending", "retrying"):
        settling = Settling("0")
        assert shown(settling, 0.0, event(1, state)) == []
        assert shown(settling, PATIENCE_S - 0.1, event(1, state)) == []
        assert shown(settling, PATIENCE_S, event(1, state)) == [1]


def test_an_event_that_nobody_wants_is_settled():
    settling = Settling("0")
    assert shown(settling, 0.0, event(1)) == []
    assert shown(settling, QUIET_S, event(1)) == [1]


def test_events_are_shown_in_order_though_a_later_one_settles_first():
    settling = Settling("0")
    assert shown(settling, 0.0, event(1, "pending"), event(2, "delivered")) == []
    assert shown(settling, 1.0, event(1, "pending"), event(2, "delivered")) == []
    assert settling.position == "0"
    assert shown(settling, 2.0, event(1, "delivered"), event(2, "delivered")) == []
    assert shown(settling, 2.0 + QUIET_S, event(1, "delivered"), event(2, "delivered")) == [1, 2]


def test_events_of_several_logs_are_told_apart_and_asked_for_by_their_cursors():
    settling = Settling("0")
    one = {**event(1, "delivered"), "broker": "default/one", "next": "Penstock:1,Redis:0"}
    two = {**event(1, "pending"), "broker": "default/two", "next": "Penstock:1,Redis:1"}
    assert shown(settling, 0.0, one, two) == []
    assert shown(settling, QUIET_S, one, two) == [1]
    assert settling.position == "Penstock:1,Redis:0"
    assert shown(settling, PATIENCE_S, two, following="Penstock:1,Redis:4") == [1]
    assert settling.position == "Penstock:1,Redis:4"


def test_a_page_without_events_that_match_is_not_asked_for_again():
    settling = Settling("7")
    assert shown(settling, 0.0, following="20007") == []
    assert settling.position == "20007"
    assert shown(settling, 1.0, event(20_009, "pending"), following="20010") == []
    assert settling.position == "20007"


def awaited(seq, state, *, matches):
    return {**event(seq, state), "matches": matches}


def test_where_a_state_is_awaited_an_event_is_shown_when_it_comes_to_it_whatever_came_before():
    settling = Settling("0", awaits=True)
    first = awaited(1, "retrying", matches=False)
    assert shown(settling, 0.0, first, awaited(2, "dropped", matches=True)) == [2]
    assert settling.position == "0"
    assert shown(settling, PATIENCE_S, first, awaited(2, "dropped", matches=True)) == []
    assert shown(settling, AWAITING_S - 1, awaited(1, "dropped", matches=True), following="2") == [1]
    assert settling.position == "2"


def test_what_settles_otherwise_or_not_in_time_is_passed_over():
    settling = Settling("0", awaits=True)
    both = awaited(1, "delivered", matches=False), awaited(2, "pending", matches=False)
    assert shown(settling, 0.0, *both) == []
    assert shown(settling, QUIET_S, *both) == []
    assert settling.position == "1"
    assert shown(settling, AWAITING_S, both[1], following="2") == []
    assert settling.position == "2"


def test_what_does_not_match_when_it_is_due_is_not_shown_without_awaiting_either():
    settling = Settling("0")
    assert shown(settling, 0.0, awaited(1, "delivered", matches=False), awaited(2, "pending", matches=True)) == []
    assert shown(settling, PATIENCE_S, awaited(1, "delivered", matches=False), awaited(2, "pending", matches=True)) == [
        2
    ]
