"""LIKE: cases of the specification (CESQL 1.0.0, section 3.4.3), a regular expression as the oracle, and its cost."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.cesql.like import compile_pattern


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        pytest.param("", [""], ["a"], id="nothing"),
        pytest.param("a", ["a"], ["", "A", "aa"], id="itself"),
        pytest.param("%", ["", "a", "a\nb"], [], id="anything"),
        pytest.param("%%", ["", "a"], [], id="anything twice"),
        pytest.param("_", ["a", "\n", "ü", "🐈"], ["", "ab"], id="one character"),
        pytest.param("_%", ["a", "ab"], [""], id="at least one"),
        pytest.param("a%", ["a", "ab"], ["ba", ""], id="a beginning"),
        pytest.param("%a", ["a", "ba"], ["ab", ""], id="an end"),
        pytest.param("%a%", ["a", "bab"], ["b", ""], id="a part"),
        pytest.param("a%a", ["aa", "aba"], ["a", "ab"], id="both ends, which do not share a character"),
        pytest.param("a%b%c", ["abc", "axbxc", "abcbc"], ["acb", "ac"], id="parts in order"),
        pytest.param("%ab%ab%", ["abab", "xabxabx"], ["ab", "aba"], id="parts that do not overlap"),
        pytest.param("%a_c%", ["abc", "aabcc", "xaac"], ["ac", "abbc"], id="a part with any character"),
        pytest.param("%_a_%", ["bab", "aaa"], ["ab", "ba"], id="a part between any characters"),
        pytest.param("a_c", ["abc"], ["ac", "abbc", "abd"], id="any character in the middle"),
        pytest.param("_b%", ["ab", "abc", "abcd1"], ["b", "acd", "aBc"], id="any character, then a beginning"),
        pytest.param(r"abc\%", ["abc%"], ["abcd", r"abc\%", "abc"], id="an escaped percent sign"),
        pytest.param(r"a\_b", ["a_b"], ["axb"], id="an escaped underscore"),
        pytest.param(r"a\b", [r"a\b"], ["ab"], id="a backslash before another character"),
        pytest.param("a\\", ["a\\"], ["a"], id="a backslash at the end"),
        pytest.param(r"\\%", [r"\%"], [r"\\", r"\\a"], id="a backslash before an escaped percent sign"),
        pytest.param("[a]*.+", ["[a]*.+"], ["a"], id="signs of regular expressions"),
    ],
)
def test_a_pattern_stands_for_texts(pattern: str, yes: list[str], no: list[str]):
    matches = compile_pattern(pattern)
    assert [text for text in yes if not matches(text)] == []
    assert [text for text in no if matches(text)] == []


@given(st.text(st.sampled_from("ab_"), max_size=6), st.text(st.sampled_from("ab"), max_size=6), st.integers(0, 3))
def test_a_long_part_matches_what_the_regular_expression_matches(piece: str, text: str, more: int):
    pattern = f"%{'a_' * 20}{piece}%b"
    value = f"{text}{'aa' * more}{'ab' * 20}{text}"
    assert compile_pattern(pattern)(value) is (oracle(pattern).fullmatch(value) is not None)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_a_long_part_is_found_as_a_short_one_is(length: int):
    matches = compile_pattern(f"%{'_' * length}b%")
    assert matches("a" * length + "b")
    assert matches(f"aa{'a' * length}bb")
    assert not matches("a" * (length - 1) + "b")
    assert not matches("a" * (length + 5))


def oracle(pattern: str) -> re.Pattern[str]:
    parts = re.findall(r"\\[%_]|.", pattern, re.DOTALL)
    meant = {"%": ".*", "_": "."}
    return re.compile("".join(meant.get(part) or re.escape(part[-1]) for part in parts), re.DOTALL)


@given(st.text(st.sampled_from("ab%_\\\n"), max_size=8), st.text(st.sampled_from("ab%_\\\n"), max_size=8))
def test_a_pattern_matches_what_the_regular_expression_matches(pattern: str, text: str):
    assert compile_pattern(pattern)(text) is (oracle(pattern).fullmatch(text) is not None)


@pytest.mark.parametrize(
    "pattern",
    ["%a" * 40 + "%b", "%a_" * 40 + "%b", "%" + "a_" * 100 + "b%", "%" + "a_" * 15 + "b%", "%" + "a" * 200 + "b%"],
)
def test_the_time_grows_with_the_text_and_not_with_what_a_pattern_could_try(pattern: str):
    # A regular expression that backtracks does not end within the age of the universe. The text is as long as an
    # event's attributes can be; the limit is some twenty times what is needed.
    matches = compile_pattern(pattern)
    began = time.process_time()
    assert not matches("a" * 64 * 1024)
    assert time.process_time() - began < 1
