"""A short run of ``make soak``, and the arithmetic by which it judges growth."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from soak import growth, run
from soak.growth import Sample, Size
from soak.wire import Ledger


@pytest.mark.model
@pytest.mark.parametrize("minutes", [0.4, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_a_mixed_load_is_answered_correctly_and_leaves_nothing_behind(
    tmp_path: Path, minutes: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F20, F44: a mixed load with aborts gets only right answers; no slot, descriptor or thread leaks."""
    monkeypatch.setenv("OLLAMA_NB_HOME", str(tmp_path / "client"))
    args = Namespace(minutes=minutes, warm_up=0.2, every=4, clients=4, rate=0, abandon=0.7, seed=1)
    report = run.run(tmp_path, args, print)
    print(run.text(report))
    problems = [problem for problem in report.problems if minutes > 1 or "grows" not in problem]
    assert not problems, problems
    assert report.outcomes["answered"] > 100 * minutes
    assert {of.role for of in report.growths} >= {"server", "runner.child stories", "runner.child minilm"}


def test_the_slope_of_a_line_is_exact_and_noise_widens_its_interval() -> None:
    xs = [float(x) for x in range(20)]
    slope, margin = growth.regression(xs, [3 + 0.5 * x for x in xs])
    assert slope == pytest.approx(0.5)
    assert margin == pytest.approx(0, abs=1e-9)
    slope, margin = growth.regression(xs, [3 + 0.5 * x + (-1) ** int(x) for x in xs])
    assert slope - margin < 0.5 < slope + margin
    assert margin > 0.05
    assert growth.regression([1, 2], [1, 2])[1] == float("inf")  # two samples say nothing about the noise


def test_a_leaking_process_is_found_and_one_that_has_just_started_is_not_judged() -> None:
    """F44: growth of memory and of descriptors is found for each process."""
    samples = [
        Sample(
            at, at * 100,
            (Size(1, "server", 50_000 + at * 100, 20 + at, 9), *([Size(7, "runner", 9_000, 5, 2)] if at > 18 else [])),
        )
        for at in range(20)
    ]  # fmt: skip
    (server,) = growth.growths(samples)
    assert server.slope == pytest.approx(1000 / 1024)
    assert server.files == 15
    assert server.threads == 0


def test_every_request_gets_an_id_of_its_own_and_an_outcome() -> None:
    ledger = Ledger()
    ids = {ledger.start("chat") for _ in range(5)}
    ledger.end("answered", next(iter(ids)))
    ledger.fail("wrong")
    assert len(ids) == 5
    assert (ledger.sent, ledger.outcomes["failed"], ledger.failures) == (5, 1, ["wrong"])
