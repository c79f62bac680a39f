"""The schedules' file: what it may say, and the one line that says what is wrong with it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from domain.errors import ConfigurationError
from starter.schedule_file import (
    Overlap,
    WantedSchedule,
    load_schedules,
    parse_duration,
    parse_schedules,
    show_duration,
)
from workflows.registry import JOBS

CHAIN = 8453


def parse(text: str) -> list[WantedSchedule]:
    return parse_schedules(text, JOBS, where="the file", chain_id=CHAIN)


def entry(*lines: str, name: str = "beat") -> str:
    return "\n".join(["schedules:", f"  {name}:", *(f"    {line}" for line in lines)])


BEAT = ("job: GovernanceHeartbeat", "every: 5m")


def test_the_file_that_comes_with_the_product_is_good_and_has_the_promised_jobs() -> None:
    schedules = load_schedules(None, JOBS, chain_id=CHAIN)
    assert {"GovernanceHeartbeat", "GovernanceReport", "Housekeeping"} <= {one.job for one in schedules}
    assert {one.overlap for one in schedules} == {Overlap.SKIP}
    assert not any(one.starts_paused for one in schedules)


def test_an_entry_needs_a_job_and_an_interval_and_gets_the_rest() -> None:
    [beat] = parse(entry(*BEAT))
    assert (beat.name, beat.job, beat.every) == ("beat", "GovernanceHeartbeat", timedelta(minutes=5))
    assert (beat.overlap, beat.offset, beat.jitter) == (Overlap.SKIP, timedelta(0), timedelta(0))
    assert (beat.starts_paused, beat.note, beat.time_limit) == (False, "", timedelta(hours=1))
    assert beat.input == {"low_balance_credits": 100_000_000, "head_age_seconds_max": 600}


def test_everything_can_be_said() -> None:
    [beat] = parse(
        entry(
            "job: GovernanceHeartbeat",
            "every: 1h30m",
            "offset: 10s",
            "jitter: 1m",
            "overlap: buffer_one",
            "time_limit: 2m",
            "paused: true",
            "note: until the launch",
            "input: {low_balance_credits: 7}",
        )
    )
    assert (beat.every, beat.offset, beat.jitter) == (
        timedelta(minutes=90),
        timedelta(seconds=10),
        timedelta(minutes=1),
    )
    assert (beat.overlap, beat.time_limit) == (Overlap.BUFFER_ONE, timedelta(minutes=2))
    assert (beat.starts_paused, beat.note) == (True, "until the launch")
    assert beat.input["low_balance_credits"] == 7


def test_a_file_without_schedules_requires_none() -> None:
    assert parse("schedules: {}") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected one key at the top, `schedules`, got None"),
        ("schedules: {}\njobs: {}", "expected one key at the top"),
        ("schedules:", "schedules: got None, expected schedules by their names"),
        ("schedules: [beat]", "schedules: got ['beat'], expected schedules by their names"),
        ("schedules: {", "line 1: "),
        (entry(*BEAT) + "\n" + "\n".join(entry(*BEAT).splitlines()[1:]), "line 5: the key 'beat' is duplicated"),
        (entry(*BEAT, "every: 6m"), "line 5: the key 'every' is duplicated"),
        (entry(*BEAT, name="Beat"), "schedules.Beat: got the name 'Beat', expected a-z, 0-9 and -, at most 63"),
        (entry(*BEAT, name="b" * 64), "expected a-z, 0-9 and -, at most 63"),
        (entry(*BEAT, name="7"), "got the name 7, expected a-z"),
        ("schedules: {beat: 5m}", "schedules.beat: got '5m', expected at least `job:` and `every:`"),
        (entry("every: 5m"), "schedules.beat.job: got nothing, expected the name of a job"),
        (entry("job: GovernanceHeartbeat"), "schedules.beat.every: got nothing, expected a duration such as 30s, 15m"),
        (entry("job: Heartbeat", "every: 5m"), "schedules.beat.job: got 'Heartbeat', expected one of "),
        (entry(BEAT[0], "every: 5"), "schedules.beat.every: got 5, expected a duration such as 30s, 15m, 1h30m or 1d"),
        (entry(BEAT[0], "every: 5 minutes"), "schedules.beat.every: got '5 minutes', expected a duration"),
        (entry(BEAT[0], "every: 1:30"), "schedules.beat.every: got 90, expected a duration"),
        (entry(BEAT[0], "every: ''"), "schedules.beat.every: got '', expected a duration"),
        (entry(BEAT[0], "every: 0s"), "schedules.beat.every: got '0s', expected a duration"),
        (entry(BEAT[0], "every: 367d"), "schedules.beat.every: got '367d', expected a duration"),
        (entry(*BEAT, "jitter: 5m"), "schedules.beat.jitter: got 5m, expected less than `every`, 5m"),
        (entry(*BEAT, "offset: 301s"), "schedules.beat.offset: got 5m1s, expected less than `every`, 5m"),
        (entry(*BEAT, "overlap: queue"), "schedules.beat.overlap: got 'queue', expected skip, buffer_one or allow_all"),
        (entry(*BEAT, "paused: 'yes'"), "schedules.beat.paused: got 'yes', expected true or false"),
        (entry(*BEAT, "note: 7"), "schedules.beat.note: got 7, expected text"),
        (entry(*BEAT, "catchup: 1h"), "schedules.beat: got the key 'catchup', expected one of job, every, "),
        (entry(*BEAT, "input: 7"), "schedules.beat.input: got 7, expected the job's own settings"),
        (
            entry(*BEAT, "input: {low_balance: 7}"),
            "schedules.beat.input: got 'low_balance', expected one of low_balance_",
        ),
        (
            entry(*BEAT, "input: {low_balance_credits: much}"),
            "schedules.beat.input.low_balance_credits: got 'much', expected: ",
        ),
        (entry(*BEAT, "input: {low_balance_credits: -1}"), "low_balance_credits: got -1, expected: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line_that_names_the_key(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(text)
    [line] = caught.value.message.splitlines()
    assert line.startswith("the file: ")
    assert words in line


def test_a_file_that_is_not_there_is_a_setting_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="SCHEDULES_FILE: .*nowhere.yaml cannot be read"):
        load_schedules(tmp_path / "nowhere.yaml", JOBS, chain_id=CHAIN)


def test_nothing_in_the_file_is_executed() -> None:
    with pytest.raises(ConfigurationError, match="determine a constructor"):
        parse("schedules: !!python/object/apply:os.getcwd []")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("30s", 30), ("15m", 900), ("1h", 3600), ("1d", 86_400), ("1h30m", 5400), ("2d1h1m1s", 176_461)],
)
def test_a_duration_is_read_and_written_the_same(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)
    assert show_duration(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize("text", ["", "5", "m", "5 m", "1m1h", "-5m", "1.5h", "٣m", "5M", None, 5])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the caller knows the message
        parse_duration(text)


def test_a_job_that_works_on_one_chain_is_made_for_the_chain_of_the_settings() -> None:
    schedules = {one.name: one for one in load_schedules(None, JOBS, chain_id=CHAIN)}
    of_a_chain = {name for name, one in schedules.items() if one.chain_id is not None}
    assert of_a_chain == {"book-sweeps", "deposits-check", "housekeeping", "rescan-chain", "reconciliation"}
    for name, one in schedules.items():
        assert (one.chain_id, one.input.get("chain_id")) == ((CHAIN, CHAIN) if name in of_a_chain else (None, None))


def test_the_file_does_not_say_for_which_chain() -> None:
    with pytest.raises(ConfigurationError, match=r"input: got 'chain_id', expected"):
        parse(entry("job: Housekeeping", "every: 1m", "input: {chain_id: 1}"))
