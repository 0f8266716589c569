"""Job metadata (S9): what is asked is read exactly, what is wrong is refused with the field named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.configs import units
from moorage.configs.job import KEYS, SHAPE, near_miss, parse_job
from moorage.errors import InvalidRequest
from moorage.scheduling.model import MAX_DEVICES


def test_the_most_gpus_of_a_process_is_what_the_core_can_express() -> None:
    assert units.MAX_GPUS == MAX_DEVICES


def test_a_full_ask() -> None:
    ask = parse_job(
        {
            "team": "ops",
            "priority": "high",
            "workers": "4",
            "min_workers": "2",
            "gpus_per_worker": "0.5",
            "gpu_memory_mib": "4096",
            "cpus_per_worker": "1.5",
            "preemptible": "true",
            "max_runtime": "1h30m",
            "lr": "0.1",
            "git.sha": "abc",
        },
        entrypoint_num_gpus=1,
        entrypoint_num_cpus=0.5,
        entrypoint_memory=1 << 30,
    )
    assert (ask.team, ask.priority, ask.workers, ask.min_workers, ask.preemptible) == ("ops", 900, 4, 2, True)
    assert ask.worker.model_dump() == {"milli_gpu": 500, "gpu_mib": 4096, "milli_cpu": 1500, "mib": 0}
    assert ask.head.model_dump() == {"milli_gpu": 1000, "gpu_mib": 4096, "milli_cpu": 500, "mib": 1024}
    assert ask.milli_gpu() == 3000 and ask.max_runtime_ns == 5400 * 10**9
    assert ask.user == {"lr": "0.1", "git.sha": "abc"}


def test_headers_beat_metadata() -> None:
    ask = parse_job(
        {"team": "ops", "workers": "1"}, {"Moorage-Team": "research", "moorage-WORKERS": "3", "x": "y"}
    )
    assert (ask.team, ask.workers) == ("research", 3)


def test_nothing_asked_takes_the_teams_default_lease() -> None:
    default = {"workers": 2, "gpus_per_worker": 1}
    assert parse_job({"team": "ops"}, default_lease=default).milli_gpu() == 2000
    assert parse_job({"workers": "1"}, default_lease=default).milli_gpu() == 0
    assert parse_job({}, entrypoint_num_gpus=1, default_lease=default).milli_gpu() == 1000


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("worker", "workers"),
        ("gpus_per_workers", "gpus_per_worker"),
        ("Team", "team"),
        ("min-workers", "min_workers"),
        ("max_run_time", "max_runtime"),
        ("gpus", "gpus_per_worker"),
        ("preemptable", "preemptible"),
        ("prioirty", "priority"),
    ],
)
def test_near_misses_are_refused_with_what_was_meant(key: str, meant: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({key: "1"})
    assert refused.value.code == "near-miss-key"
    assert refused.value.extra["suggestion"] == meant and meant in str(refused.value)


@pytest.mark.parametrize(
    "key", ["lr", "epochs", "run_name", "owner", "model", "seed", "dataset", "my.worker", "job_name"]
)
def test_the_users_own_keys_are_kept(key: str) -> None:
    assert parse_job({key: "v"}).user == {key: "v"}


@pytest.mark.parametrize(
    "key", ["job_submission_id", "moorage_token", "Moorage-Job", "moorage.x", "JOB_SUBMISSION_ID"]
)
def test_reserved_keys_are_refused(key: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({key: "v"})
    assert refused.value.code == "reserved-key"


BAD = [
    "-1",
    "NaN",
    "nan",
    "inf",
    "-inf",
    "Infinity",
    "1e9",
    "",
    " ",
    "one",
    "0x10",
    "1_000",
    "٣",
    "1.0001",
    "--1",
    "1e999",
]


@pytest.mark.parametrize("value", [*BAD, "1.5", "2.25"])
def test_bad_gpu_counts_are_refused_with_the_field_named(value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({"gpus_per_worker": value})
    assert refused.value.extra["field"] == "gpus_per_worker"


@pytest.mark.parametrize("field", ["workers", "min_workers", "gpu_memory_mib", "priority", "max_attempts"])
@pytest.mark.parametrize("value", [*BAD, "0.5"])
def test_bad_whole_numbers_are_refused_with_the_field_named(field: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({"workers": "2", "gpus_per_worker": "1"} | {field: value})
    assert refused.value.extra["field"] == field


@pytest.mark.parametrize("value", ["0", "-5", "0s", "nan", "1y", "m", "1h-3m", "400d", "inf"])
def test_bad_durations_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({"max_runtime": value})
    assert refused.value.extra["field"] == "max_runtime"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 1.5, 1e12, True])
def test_bad_entrypoint_gpus_are_refused(value: float) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_job({}, entrypoint_num_gpus=value)
    assert refused.value.extra["field"] == "entrypoint_num_gpus"


@pytest.mark.parametrize(
    "metadata",
    [
        {"workers": "0"},
        {"workers": "2", "min_workers": "3"},
        {"gpu_memory_mib": "1000"},
        {"workers": "1", "cpus_per_worker": "0"},
        {"team": "../ops"},
        {"priority": "urgent"},
        {"priority": "1001"},
        {"preemptible": "maybe"},
        {"a\x00": "b"},
        {"a": "x" * 20_000},
        {str(n): "x" for n in range(200)},
    ],
)
def test_other_nonsense_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_job(metadata)


@given(
    st.dictionaries(st.one_of(st.sampled_from(KEYS), st.text(max_size=20)), st.text(max_size=12), max_size=6)
)
def test_any_metadata_is_read_or_refused_never_a_crash(metadata: dict[str, str]) -> None:
    try:
        ask = parse_job(metadata)
    except InvalidRequest as error:
        assert error.http_status == 400 and error.code
        return
    assert set(ask.user) == set(metadata) - set(KEYS)
    assert 0 <= ask.min_workers <= ask.workers
    assert ask.worker.milli_gpu < 1000 or ask.worker.milli_gpu % 1000 == 0
    assert not (SHAPE & ask.user.keys())


@given(st.integers(0, 62_000))
def test_milli_gpus_are_exact(milli: int) -> None:
    text = f"{milli // 1000}.{milli % 1000:03d}"
    if milli <= 1000 or milli % 1000 == 0:
        assert parse_job({"gpus_per_worker": text, "workers": "1"}).worker.milli_gpu == milli
    else:
        with pytest.raises(InvalidRequest):
            parse_job({"gpus_per_worker": text, "workers": "1"})


@given(st.sampled_from(KEYS), st.integers(0, 20), st.characters(codec="ascii", categories=["Ll"]))
def test_one_typing_error_in_a_long_key_is_noticed(key: str, at: int, letter: str) -> None:
    if len(key) < 7:
        return
    at %= len(key)
    for wrong in (key[:at] + key[at + 1 :], key[:at] + letter + key[at:]):
        if wrong not in KEYS:
            assert near_miss(wrong) is not None
