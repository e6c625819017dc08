"""Statistics of result lines are computed right."""

import numpy as np
import pytest
from result_lines import AT, KD, line

from experiments.results.statistics import (
    Cell,
    Gap,
    above_line,
    against_kd,
    fill,
    fill_table,
    paired,
    rank_agreement,
    seed_agreement,
)
from experiments.tables.rows import Row, Table


def test_a_row_whose_configuration_does_not_exist_is_named():
    table = Table("T", (Row("digits:method=kd"), Row("digits:method=kdd", published=90.0)))
    filled, problems = fill_table(table, {})
    assert [cell.n for cell in filled["quick"]] == [0, 0]
    assert len(problems) == 1 and "did you mean 'kd'" in problems[0]


def cell_of(values, published=None, protocol="paper", method="kd", epoch="last"):
    row = Row(f"cifar10:method={method},pair=r56_r20", published=published, epoch=epoch)
    return Cell(row, protocol, values, 1.0, {})


def test_mean_spread_and_verdict():
    cell = cell_of({0: 92.0, 1: 94.0, 2: 93.0}, 93.5)
    assert (cell.n, cell.mean, cell.sd) == (3, 93.0, 1.0)
    assert cell.difference == -0.5
    assert cell.verdict == "inside"
    assert cell_of({0: 92.0, 1: 94.0}, 90.0).verdict == "above"
    assert cell_of({0: 92.0, 1: 94.0}, 95.0).verdict == "below"
    assert cell_of({0: 92.0}, 92.0).verdict == "one seed"
    assert cell_of({0: 92.0, 1: 93.0}, 92.0, protocol="quick").verdict == "another protocol"
    assert cell_of({}, 92.0).verdict == ""
    assert cell_of({0: 92.0}).difference is None


def test_differences_are_paired_by_seed_with_students_interval():
    pair = paired({0: 91.0, 1: 93.0, 2: 95.0, 7: 1.0}, {0: 90.0, 1: 91.0, 2: 92.0, 8: 2.0})
    assert (pair.mean, pair.n) == (2.0, 3)
    assert pair.half == pytest.approx(4.302653 / np.sqrt(3), abs=1e-5)  # t(0.975, 2), sd 1
    assert paired({0: 1.0}, {1: 1.0}) is None
    assert paired({0: 3.0}, {0: 1.0}).half is None


def test_points_above_a_line_have_the_interval_of_least_squares():
    rng = np.random.default_rng(0)
    x, noise = np.arange(6.0), rng.normal(size=6)
    gap = above_line(np.array([[2, 8], [4, 12]]), np.stack([x, 1 + 2 * x + noise], 1))
    design = np.stack([np.ones(6), x], 1)
    inverse = np.linalg.inv(design.T @ design)
    line = inverse @ design.T @ (1 + 2 * x + noise)
    variance = np.square(1 + 2 * x + noise - design @ line).sum() / 4
    middle = np.array([1, 3])
    assert gap.mean == pytest.approx(10 - middle @ line)
    error = np.sqrt(variance * (1 / 2 + middle @ inverse @ middle))
    assert gap.half == pytest.approx(2.7764451 * error)  # 97.5 % of Student's t with 4 degrees
    assert gap.n == 2


def test_the_best_epoch_is_reported_where_the_paper_reports_it():
    results = {one["hash"]: one for one in [line(KD, 0, 90.0)]}
    assert fill(Row(KD, epoch="last"), "quick", results).mean == 90.0
    assert fill(Row(KD, epoch="best"), "quick", results).mean == 91.0
    assert fill(Row(KD, metric="hard"), "quick", results).mean == 90.0
    assert fill(Row(KD), "quick", {}).mean is None
    assert fill(Row(KD, metric="unseen"), "quick", results).n == 0
    seen = {one["hash"]: one for one in [line(KD, 0, 90.0, unseen=70.0)]}
    assert fill(Row(KD, metric="unseen"), "quick", seen).mean == 70.0


def test_the_difference_to_kd_is_found_in_other_tables():
    results = {line(text, s, top1)["hash"]: line(text, s, top1)
               for text, top1 in ((KD, 90.0), (AT, 91.5)) for s in (0, 1)}  # fmt: skip
    cell = fill(Row(AT), "quick", results)
    assert against_kd(cell, results) == Gap(1.5, 0.0, 2)
    assert against_kd(fill(Row(KD), "quick", results), results) is None
    assert against_kd(cell, {}) is None


def test_rank_agreement_is_spearmans():
    cells = [cell_of({0: v}, p) for v, p in ((1.0, 60.0), (2.0, 61.0), (3.0, 63.0), (4.0, 62.0))]
    assert rank_agreement(cells) == (pytest.approx(0.8), 4)
    assert rank_agreement(cells[:3]) is None


def test_seeds_agree_when_they_order_the_methods_alike():
    same = [cell_of({0: v, 1: v + 1, 2: v - 1}) for v in (1.0, 2.0, 3.0, 4.0)]
    assert seed_agreement(same) == (pytest.approx(1.0), 4, 3)
    turned = [cell_of({0: v, 1: -v}) for v in (1.0, 2.0, 3.0, 4.0)]
    assert seed_agreement(turned) == (pytest.approx(-1.0), 4, 2)
    assert seed_agreement([cell_of({0: 1.0, 1: v}) for v in (1.0, 2.0, 3.0, 4.0)]) is None
    assert seed_agreement(same[:3]) is None
    assert seed_agreement([*same, cell_of({7: 1.0})]) is None
