"""The progress of a run: rate, remaining time, and a plain text that does not change from run to run."""

from __future__ import annotations

from ollama_nb.notebook.frame.bar import RowProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left() -> None:
    clock = Clock()
    bar = RowProgress("generated", 1000, known=100, clock=clock)
    assert "100 of 1,000 rows" in bar.html()
    assert "rows/s" not in bar.html()
    clock.now = 10.0
    bar.add(300)
    assert "400 of 1,000 rows · 30.0 rows/s · 20 s left" in bar.html()
    assert 'max="1000" value="400"' in bar.html()
    assert bar.plain() == "generated 400 of 1,000 rows"


def test_the_last_line() -> None:
    clock = Clock()
    bar = RowProgress("classified", 10, clock=clock)
    clock.now = 200.0
    bar.add(7)
    bar.add(2, failed=True)
    bar.add(1, cut_off=True)
    bar.finish()
    assert bar.plain() == "classified 10 rows · 2 failed · 1 cut off at `num_predict`"
    assert "classified 10 rows in 3 min 20 s · 0.1 rows/s · 2 failed" in bar.html()
    assert "<code>num_predict</code>" in bar.html()


def test_rows_of_an_earlier_run_are_reported() -> None:
    clock = Clock()
    bar = RowProgress("generated", 5, known=5, clock=clock)
    clock.now = 0.2
    bar.finish()
    assert "generated 5 rows in 0.2 s · 5 of them were answered by an earlier run" in bar.html()
    assert bar.plain() == "generated 5 rows"


def test_a_terminal_s_log_only_grows() -> None:
    clock = Clock()
    bar = RowProgress("generated", 40, clock=clock)
    before = bar.log()
    for step in range(40):
        clock.now = step + 1.0
        bar.add(1)
        assert bar.log().startswith(before)
        before = bar.log()
    bar.finish()
    assert bar.log().startswith(before)
    assert bar.log().count("\n") == 11
    assert bar.log().endswith("generated 40 rows in 40 s · 1.0 rows/s\n")


def test_stopped() -> None:
    bar = RowProgress("generated", 2)
    bar.add(1)
    bar.interrupt()
    assert bar.plain() == "generated 1 of 2 rows (interrupted)"
    assert bar.html().endswith("1 of 2 rows · interrupted</span></div>")
    assert bar.log().endswith("interrupted\n")
