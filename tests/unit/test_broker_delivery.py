import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.delivery import DONE, MAX_BACKOFF_S, DeadLetter, Outcome, Policy, RetryAt, decide

NOW = 1_700_000_000.0  # 2023-11-14T22:13:20Z


def after(outcome: Outcome, attempt: int = 1, policy: Policy | None = None, jitter: float = 0.0):
    return decide(outcome, attempt, policy or Policy(), NOW, jitter)


RETRIED = [404, 408, 409, 429, 500, 501, 502, 503, 504, 599, 600, 999]
NOT_RETRIED = [100, 101, 300, 301, 302, 304, 307, 308, 400, 401, 402, 403, 405, 406, 410, 413, 415, 422, 451]


@pytest.mark.parametrize("status", [200, 201, 202, 203, 204, 299])
def test_every_2xx_is_done(status: int):
    assert after(Outcome(status)) == DONE


@pytest.mark.parametrize("status", RETRIED)
def test_codes_that_the_contract_calls_retriable_are_retried(status: int):
    assert isinstance(after(Outcome(status)), RetryAt)


@pytest.mark.parametrize("status", NOT_RETRIED)
def test_other_codes_go_to_the_dead_letter_sink_at_once(status: int):
    decision = after(Outcome(status))
    assert isinstance(decision, DeadLetter)
    assert str(status) in decision.reason


def test_no_answer_is_retried():
    assert isinstance(after(Outcome(0, error="no connection")), RetryAt)


def test_the_reason_for_giving_up_is_one_sentence():
    decision = after(Outcome(0, error="The answer did not come in time."), 3, Policy(retries=2))
    assert decision == DeadLetter("Given up after 3 attempts: The answer did not come in time.")


def test_a_good_answer_that_cannot_be_used_is_retried():
    assert isinstance(after(Outcome(200, error="the reply is no event")), RetryAt)


@pytest.mark.parametrize(
    ("retries", "attempt", "again"), [(0, 1, False), (1, 1, True), (1, 2, False), (10, 10, True), (10, 11, False)]
)
def test_retry_counts_attempts_after_the_first(retries: int, attempt: int, again: bool):
    decision = after(Outcome(500), attempt, Policy(retries=retries))
    assert isinstance(decision, RetryAt) is again
    if not again:
        assert decision == DeadLetter(f"Given up after {attempt} attempts: the subscriber answered 500.")


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        pytest.param(Policy(delay_s=0.2), [0.2, 0.4, 0.8, 1.6], id="exponential"),
        pytest.param(Policy(delay_s=0.5, backoff="linear"), [0.5, 1.0, 1.5, 2.0], id="linear"),
        pytest.param(Policy(delay_s=0.0), [0.0, 0.0], id="none"),
        pytest.param(Policy(delay_s=40.0), [40.0, MAX_BACKOFF_S, MAX_BACKOFF_S], id="capped"),
        pytest.param(Policy(delay_s=300.0), [300.0, 300.0], id="a configured delay is not cut"),
    ],
)
def test_back_off_grows_by_its_policy_up_to_a_cap(policy: Policy, delays: list[float]):
    for attempt, delay in enumerate(delays, 1):
        assert after(Outcome(500), attempt, policy) == RetryAt(pytest.approx(NOW + delay))


@given(st.integers(1, 1000), st.floats(0, 1, exclude_max=True), st.sampled_from(["linear", "exponential"]))
def test_jitter_only_adds_and_the_delay_stays_bounded(attempt: int, jitter: float, backoff):
    policy = Policy(retries=1000, backoff=backoff)
    plain, spread = after(Outcome(500), attempt, policy), after(Outcome(500), attempt, policy, jitter)
    assert isinstance(plain, RetryAt)
    assert isinstance(spread, RetryAt)
    assert NOW <= plain.at <= spread.at <= NOW + 1.2 * MAX_BACKOFF_S + 0.001


@pytest.mark.parametrize(
    ("status", "header", "maximum", "delay"),
    [
        pytest.param(503, "7", 300.0, 7.0, id="503 in seconds"),
        pytest.param(429, "7", 300.0, 7.0, id="429 in seconds"),
        pytest.param(429, "Tue, 14 Nov 2023 22:13:30 GMT", 300.0, 10.0, id="a date"),
        pytest.param(429, "Tue, 14 Nov 2023 22:13:10 GMT", 300.0, 0.2, id="a date that has passed"),
        pytest.param(429, "7", 5.0, 5.0, id="bounded by retryAfterMax"),
        pytest.param(429, "7", 0.0, 0.2, id="ignored with PT0S"),
        pytest.param(500, "7", 300.0, 0.2, id="only on 429 and 503"),
        pytest.param(429, "0", 300.0, 0.2, id="never sooner than the back-off"),
        pytest.param(429, "soon", 300.0, 0.2, id="unreadable"),
        pytest.param(429, "-7", 300.0, 0.2, id="negative"),
        pytest.param(429, "9" * 400, 300.0, 300.0, id="absurdly long"),
        pytest.param(429, "Tue, 99 Nov 2023 22:13:10 GMT", 300.0, 0.2, id="no date"),
    ],
)
def test_retry_after_is_followed_within_its_bound(status: int, header: str, maximum: float, delay: float):
    decision = after(Outcome(status, header), policy=Policy(retry_after_max_s=maximum))
    assert decision == RetryAt(pytest.approx(NOW + delay))
