"""How the benchmark judges: ratios within a round, medians, promises in both directions, and what is missing fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import cases, report
from bench.cases import Budget, Comparison, Promise, Row, Spread
from bench.watch import Run


def run(speed: float, cost: float = 1.0, memory: float = 50.0) -> Run:
    return Run(speed, cost, memory)


RATIO = Comparison("case", "ours", "theirs", Promise(1.7, 2.5))


def test_the_ratio_is_taken_within_each_round_and_the_median_judged() -> None:
    # A machine twice as slow in the second round changes no ratio.
    rounds = [{"ours": run(200), "theirs": run(100)}, {"ours": run(90), "theirs": run(50)}]
    rounds.append({"ours": run(300), "theirs": run(100)})
    row = cases.comparison_row(RATIO, rounds)
    assert row.value == Spread(1.8, 2.0, 3.0)
    assert row.records_per_s == Spread(90, 200, 300)
    assert row.verdict == "pass"


def test_a_median_below_the_must_fails_though_the_best_round_is_above() -> None:
    rounds = [{"ours": run(160), "theirs": run(100)}] * 2 + [{"ours": run(300), "theirs": run(100)}]
    assert cases.comparison_row(RATIO, rounds).verdict == "FAIL"


def test_rounds_where_one_side_is_missing_do_not_count_and_none_at_all_fails() -> None:
    rounds = [{"ours": run(200)}, {"ours": run(200), "theirs": run(100)}]
    assert cases.comparison_row(RATIO, rounds).value == Spread(2.0, 2.0, 2.0)
    row = cases.comparison_row(RATIO, [{"ours": run(200)}])
    assert (row.value, row.verdict, row.note) == (None, "FAIL", "not measured")


def test_costs_and_budgets_fail_when_larger() -> None:
    dearer = Comparison("cost", "ours", "theirs", Promise(1.2, 1.1, at_least=False), cases.cost)
    rounds = [{"ours": run(1, cost=6.0), "theirs": run(9, cost=4.0)}]
    assert cases.comparison_row(dearer, rounds).verdict == "FAIL"
    budget = Budget("cpu", "ours", cases.cost, "s/M", Promise(6, 4, at_least=False))
    assert cases.budget_row(budget, rounds).verdict == "pass"
    assert cases.budget_row(budget, [{"ours": run(1, cost=6.1)}]).verdict == "FAIL"
    assert cases.budget_row(budget, []).verdict == "FAIL"


def test_a_case_without_promise_never_fails_once_measured() -> None:
    free = Comparison("raw", "ours", "theirs")
    assert cases.comparison_row(free, [{"ours": run(1), "theirs": run(100)}]).verdict == "-"
    assert cases.comparison_row(free, []).verdict == "FAIL"


def test_every_tool_runs_once_a_round_and_beside_its_reference() -> None:
    names = cases.tools_of(cases.COMPARISONS, cases.BUDGETS)
    assert len(names) == len(set(names))
    assert names.index("hand loop redis-kafka") == names.index("crossfade redis-kafka") + 1
    assert names.index("hand loop kafka-redis") == names.index("crossfade kafka-redis") + 1


def test_every_must_of_the_plan_is_promised() -> None:
    ratios = {(c.tool, c.reference): c.promise for c in cases.COMPARISONS if c.promise}
    assert ratios[("crossfade redis-kafka", "hand loop redis-kafka")].must == 1.7
    assert ratios[("crossfade kafka-redis", "hand loop kafka-redis")].must == 2.0
    assert ratios[("crossfade kafka-kafka", "mirrormaker exactly once")].must == 1.5
    assert ratios[("crossfade kafka-kafka", "mirrormaker at least once")].must == 1.0
    assert ratios[("crossfade redis-redis", "redis-benchmark XADD -P 64")].must == 0.45
    budgets = {(b.case, b.tool): b.promise.must for b in cases.BUDGETS}
    assert budgets[("cpu", "crossfade redis-kafka")] == 6
    assert budgets[("cpu", "crossfade kafka-redis")] == 2.5
    assert set(budgets.values()) == {6, 2.5, 300}
    assert {promise.must for promise in cases.LATENCIES.values()} == {250, 60}


@pytest.mark.parametrize(("at_least", "figure", "kept"), [(True, 1.0, True), (True, 0.99, False), (False, 1.01, False)])
def test_a_promise_holds_at_its_limit(at_least: bool, figure: float, kept: bool) -> None:
    assert Promise(1.0, 1.0, at_least).is_kept(figure) is kept


def test_the_report_holds_the_figures_and_the_table_shows_them(tmp_path: Path) -> None:
    rounds = [{"ours": run(200_000, cost=3.5), "theirs": run(100_000)}]
    rows = [cases.comparison_row(RATIO, rounds), Row("latency", "ours", "ms", None, Promise(250, 150, False))]
    report.write(tmp_path / "deep" / "bench.json", rows, {"machine": {"cores": 2}})
    document = json.loads((tmp_path / "deep" / "bench.json").read_text())
    first, second = document["rows"]
    assert document["machine"] == {"cores": 2}
    assert first["ratio"] == {"min": 2.0, "median": 2.0, "max": 2.0}
    assert (first["case"], first["reference"], first["verdict"]) == ("case", "theirs", "pass")
    assert first["records_per_s"]["median"] == 200_000
    assert first["cpu_s_per_million"]["median"] == 3.5
    assert (first["must"], first["aim"], first["aim_met"]) == (1.7, 2.5, False)
    assert (second["ratio"], second["verdict"]) == (None, "FAIL")
    shown = report.table(rows).splitlines()
    assert len(shown) == 3
    assert "200,000" in shown[1]
    assert shown[1].endswith("pass")
    assert shown[2].endswith("FAIL")


def test_the_page_gets_the_measured_figures_and_keeps_its_words(tmp_path: Path) -> None:
    rows = [cases.comparison_row(RATIO, [{"ours": run(300_000), "theirs": run(100_000)}])]
    rows.append(cases.comparison_row(RATIO, []))
    machine = {"cpu": "some", "cores": 2, "memory_gib": 23.4, "load_at_start": 0.25}
    facts = {"machine": machine, "versions": {"kafka": "4.3.1"}, "records": 1_000_000, "rounds_max": 3}
    report.write(tmp_path / "bench.json", rows, facts)
    words = tmp_path / "page.md"
    words.write_text("before\n<!-- measured: begin -->\nold figures\n<!-- measured: end -->\nafter\n")
    for _ in range(2):  # twice gives the same
        report.main([str(tmp_path / "bench.json"), "--into", str(words)])
    text = words.read_text()
    assert text.startswith("before\n")
    assert text.endswith("-->\nafter\n")
    assert "old figures" not in text
    assert "some, 2 cores, 23.4 GiB" in text
    assert (
        text.count("| case | ours | 300,000 | 1.00 | theirs (100,000) | ratio | 3 / 3 / 3 | 1.7 | 2.5 | aim met |") == 1
    )
    assert "| not measured | 1.7 | 2.5 | not kept |" in text


def test_a_page_without_a_measured_part_is_refused() -> None:
    with pytest.raises(ValueError, match="no <!-- measured"):
        report.page("words", {})
