"""The demo concludes what its numbers say, whoever wins."""

import pytest

from experiments import demo


def results(**top1):
    """method -> summaries, from numbers by seed."""
    size = {"params": 78042, "macs": 3_000_000}
    return {
        method: [
            {"last": {"top1": value}, "student": size, "teacher": size | {"top1": 98.0}}
            for value in values
        ]
        for method, values in top1.items()
    }


@pytest.mark.parametrize(
    "atkd, told",
    [
        ((93.0, 94.1, 94.9), "AT-KD +3.00 ± 0.25 points over KD: better."),
        ((87.0, 88.1, 88.9), "AT-KD -3.00 ± 0.25 points over KD: worse."),
        ((90.0, 95.0, 88.0), "AT-KD +0.00 ± 9.94 points over KD: not distinguishable."),
    ],
)
def test_the_conclusion_is_that_of_the_numbers(atkd, told):
    found = results(none=(80.0, 81.0, 82.0), kd=(90.0, 91.0, 92.0), atkd=atkd)
    assert demo.conclusion(found) == f"KD +10.00 ± 0.00 points over no teacher: better; {told}"


def test_one_seed_proves_nothing():
    found = results(none=[80.0], kd=[90.0], atkd=[95.0])
    assert demo.conclusion(found).count("one seed, which says nothing about chance") == 2


def test_the_table_and_the_bars_show_every_student(tmp_path, capsys):
    found = results(none=(80.0, 82.0), kd=(90.0, 91.0), atkd=(95.0, 99.0))
    demo.print_table(found)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [
        "teacher",
        "student,",
        "student,",
        "student,",
    ]
    assert "student, AT-KD" in lines[-1] and "97.00 ± 2.83" in lines[-1]
    assert demo.draw_bars(found, tmp_path / "top1.png").stat().st_size > 5000


def test_photographs_need_published_weights(tmp_path):
    with pytest.raises(ValueError, match="resnet20-12fca82f.th is needed; give the folder"):
        demo.teacher_weights("cifar10", None, tmp_path)
