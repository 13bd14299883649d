"""The checker can fail: each breach that it is there to find is found, and what is right is not called one."""

import pytest

from tests.support.chaos.account import UNSETTLED, UNSETTLED_S, Account, Disorder, Missing, Repeat


@pytest.fixture
def account() -> Account:
    """Two events of one key were accepted; nothing was delivered."""
    made = Account(["all", "ordered"], ordered=["ordered"])
    for number in (1, 2):
        made.sent(f"k-{number}", ("k", number))
        made.accepted(f"k-{number}")
    return made


def deliver(account: Account, subscriber: str, *events: str, process: int = 1, at: float = 0.0) -> None:
    for event in events:
        account.attempted(subscriber, event)
        account.taken(subscriber, event, process, at)


def take_many(account: Account, count: int) -> None:
    """Others, that come to both."""
    for number in range(count):
        account.sent(f"x-{number}")
        deliver(account, "all", f"x-{number}")
        deliver(account, "ordered", f"x-{number}")


def test_all_delivered_once_and_in_order_holds(account: Account):
    deliver(account, "all", "k-2", "k-1")
    deliver(account, "ordered", "k-1", "k-2")
    verdict = account.verdict()
    assert verdict.holds
    assert (verdict.accepted, verdict.delivered, verdict.repeats) == (2, 4, 0)


def test_an_account_of_nothing_proves_nothing():
    assert not Account(["all"]).verdict().holds


def test_an_accepted_event_that_did_not_come_to_a_subscriber_is_lost(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1")
    verdict = account.verdict()
    assert verdict.lost == account.missing() == [Missing("ordered", "k-2")]
    assert not verdict.holds
    assert "lost: Missing(subscriber='ordered', event='k-2')" in verdict.lines()


def test_an_attempt_that_failed_is_no_delivery(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1")
    account.attempted("ordered", "k-2")
    assert account.verdict().lost == [Missing("ordered", "k-2")]


def test_an_event_whose_acceptance_is_not_known_may_come_or_not(account: Account):
    account.sent("k-3", ("k", 3))
    deliver(account, "all", "k-1", "k-2", "k-3")
    deliver(account, "ordered", "k-1", "k-2")
    assert account.verdict().holds


def test_an_event_that_nobody_sent_is_strange(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2")
    account.attempted("all", "k-9")
    verdict = account.verdict()
    assert verdict.strange == [Missing("all", "k-9")]
    assert not verdict.holds


def test_an_event_whose_data_was_changed_is_damaged(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2")
    account.attempted("all", "k-1", intact=False)
    verdict = account.verdict()
    assert verdict.damaged == [Missing("all", "k-1")]
    assert not verdict.holds


def test_the_last_reply_to_an_accepted_event_must_come_to_everybody(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2")
    account.replied("k-1", "r-1")
    account.replied("k-1", "r-2")  # the first one's process died before it was stored
    deliver(account, "all", "r-2")
    assert account.verdict().lost == [Missing("ordered", "r-2")]
    deliver(account, "ordered", "r-1", "r-2")
    assert account.verdict().holds


def test_a_later_event_that_is_taken_first_is_out_of_order(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-2", "k-1")
    verdict = account.verdict()
    assert verdict.disordered == [Disorder("ordered", "k", "k-2", "k-1")]
    assert not verdict.holds


def test_a_later_event_that_is_sent_before_the_earlier_one_is_done_is_out_of_order(account: Account):
    deliver(account, "all", "k-1", "k-2")
    account.attempted("ordered", "k-1")
    account.attempted("ordered", "k-2")
    account.taken("ordered", "k-1", 1, 0.0)
    account.taken("ordered", "k-2", 1, 0.0)
    assert account.verdict().disordered == [Disorder("ordered", "k", "k-2", "k-1")]


def test_a_later_event_that_passes_one_that_is_lost_is_out_of_order_as_well(account: Account):
    deliver(account, "all", "k-1", "k-2")
    account.attempted("ordered", "k-1")
    deliver(account, "ordered", "k-2")
    assert account.verdict().disordered == [Disorder("ordered", "k", "k-2", "k-1")]


def test_other_keys_may_pass_an_event_that_is_tried_again(account: Account):
    account.sent("l-1", ("l", 1))
    account.accepted("l-1")
    deliver(account, "all", "k-1", "k-2", "l-1")
    account.attempted("ordered", "k-1")
    deliver(account, "ordered", "l-1", "k-1", "k-2")
    assert account.verdict().holds


def test_a_crash_explains_that_what_was_in_flight_comes_again_in_its_order(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2", at=10.0)
    account.died(1, 10.1)
    deliver(account, "ordered", "k-1", "k-2", process=2, at=11.0)
    verdict = account.verdict()
    assert verdict.holds
    assert (verdict.repeats, verdict.worst) == (2, 2)


def test_what_one_process_delivers_twice_no_crash_explains(account: Account):
    deliver(account, "all", "k-1", "k-2", "k-1")
    deliver(account, "ordered", "k-1", "k-2")
    verdict = account.verdict()
    assert verdict.unexplained == [Repeat("all", "k-1", "process 1 delivered it twice")]
    assert not verdict.holds


def test_a_process_whose_leases_ran_out_may_deliver_what_was_in_flight_again(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2", at=10.0)
    account.bereft(1, 11.0)
    deliver(account, "ordered", "k-1", at=20.0)
    assert account.verdict().holds
    deliver(account, "ordered", "k-1", at=21.0)
    assert not account.verdict().holds


def test_what_a_process_delivers_that_another_one_had_and_lives_no_crash_explains(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2")
    deliver(account, "ordered", "k-1", process=2)
    assert [repeat.event for repeat in account.verdict().unexplained] == ["k-1"]


def test_what_was_taken_long_before_the_crash_must_not_come_again(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2", at=10.0)
    take_many(account, UNSETTLED + 1)
    account.died(1, 10.0 + UNSETTLED_S + 0.5)
    deliver(account, "ordered", "k-2", process=2, at=20.0)
    why = "it was taken 3.5 s and 65 events before process 1 died"
    assert account.verdict().unexplained == [Repeat("ordered", "k-2", why)]


def test_a_process_that_did_little_after_an_event_was_taken_may_not_have_kept_that(account: Account):
    deliver(account, "all", "k-1", "k-2")
    deliver(account, "ordered", "k-1", "k-2", at=10.0)
    take_many(account, UNSETTLED)
    account.died(1, 100.0)
    deliver(account, "ordered", "k-2", process=2, at=101.0)
    assert account.verdict().holds
