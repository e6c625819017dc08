"""The declared tables: every cell can be run, and says what was published, where and how."""

import math

import pytest

from atkd_jax import methods, models
from configs import methods as presets
from experiments.queue import jobs
from experiments.tables import paper_numbers
from experiments.tables.rows import TABLES

ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]


def value(table, method, pair="", data=""):
    found = {
        row.published
        for row in TABLES[table].rows
        if row.method == method and pair in ("", row.pair) and data in ("", row.dataset)
        and row.published is not None
    }  # fmt: skip
    assert len(found) == 1
    return found.pop()


def test_every_row_is_a_configuration_that_exists():
    for name, row in {(name, row) for name, row in ROWS}:
        job = jobs.resolve(row.config, row.role)
        assert job.config.student in models.MODELS, name
        assert set(job.config.terms) <= set(methods.METHODS), name
        assert bool(job.config.terms) == (row.role == "student" and row.method != "none"), name
        if row.metric == "teacher":
            assert job.teacher is None and job.config.teacher.expect_top1 > 70


def test_no_cell_is_declared_twice():
    for name, table in TABLES.items():
        keys = [(row.config, row.role, row.metric) for row in table.rows]
        assert len(set(keys)) == len(keys), name


def test_a_published_number_has_a_source_and_is_a_percentage():
    for name, row in ROWS:
        assert row.epoch in ("last", "best", "unstated")
        assert row.metric in ("top1", "hard", "macro", "micro", "unseen", "teacher")
        if row.published is not None:
            assert row.source, (name, row)
            assert 50 < row.published < 100, (name, row)


@pytest.mark.parametrize(
    "table, method, pair, data, number",
    [
        ("rtk_table1", "rtk", "", "cifar10", 93.40),
        ("rtk_table1", "teacher", "", "cifar100", 72.81),
        ("rtk_table2", "rtk", "r34_wrn_28_2", "svhn", 96.43),
        ("rtk_table3", "none", "", "cifar100", 84.4),
        ("crd_same", "crd", "r32x4_r8x4", "", 75.51),
        ("crd_same", "fsp", "vgg13_vgg8", "", 70.23),
        ("crd_cross", "at", "r50_mv2_half", "", 58.58),
        ("crd_cross", "nst", "wrn_40_2_shufflev1", "", 74.89),
        ("crd_later", "dkd", "r56_r20", "", 71.97),
        ("imagenet_mv1", "dkd", "r50_mv1", "", 72.05),
        ("imagenet_r34_r18", "kd", "r34_r18", "", 71.03),
    ],
)
def test_printed_numbers_are_where_they_were_printed(table, method, pair, data, number):
    assert value(table, method, pair, data) == number


def test_rtk_gains_are_those_of_the_papers_text():
    cells = paper_numbers.grid(paper_numbers.RTK_TABLE1)
    for data, over_student in (("cifar10", 1.03), ("cifar100", 1.86)):
        gain = cells["rtk", data] - cells["none", data]
        assert math.isclose(gain, over_student, abs_tol=1e-6)


def test_rtks_average_roc_fits_hard_predictions():
    accuracy, areas = paper_numbers.grid(paper_numbers.RTK_TABLE2["r56_r20"]), None
    areas = paper_numbers.grid(paper_numbers.RTK_TABLE3)
    classes = {"cifar10": 10, "cifar100": 100, "svhn": 10, "cinic10": 10}
    for (method, data), printed in areas.items():
        top1 = accuracy[method, data] / 100
        hard = 100 * (top1 + 1 - (1 - top1) / (classes[data] - 1)) / 2
        assert abs(hard - printed) < 0.55, (method, data)


def test_the_short_tables_have_every_method_that_was_asked_for():
    for name in ("digits", "cifar10_small", "cifar10_published"):
        asked = "none kd fitnet at rkd crd afd rtk sp vid nst pkt cc dkd reviewkd at_kd atkd"
        asked = {*asked.split(), "atkd_poster", "aft"}
        assert asked <= {row.method for row in TABLES[name].rows}
        assert asked <= set(presets.METHODS)


def test_a_grid_with_a_missing_number_is_not_read():
    with pytest.raises(ValueError, match="shorter|longer"):
        paper_numbers.grid("a b\nkd 1.0\n")
