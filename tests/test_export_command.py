"""A finished run becomes checked files for devices; a mistake costs a line and changes nothing."""

import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_runs import PATIENCE, write_npz

from atkd_jax.export import formats, measure, onnx, trained
from atkd_jax.export.__main__ import export
from atkd_jax.export.__main__ import main as export_main
from atkd_jax.runtime.lock import lock
from atkd_jax.training.loop import train_and_evaluate
from configs import digits

pytest.importorskip("ai_edge_litert")
pytest.importorskip("onnxruntime")

CLASSIFY = Path(__file__).parent.parent / "examples/device/classify.py"


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory):
    """Three epochs on scikit-learn's digits."""
    workdir = tmp_path_factory.mktemp("runs") / "digits"
    config = digits.get_config("method=none")
    config.epochs, config.schedule.warmup_epochs, config.parallel = 3, 1.0, "none"
    train_and_evaluate(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def exported(digits_run):
    """The same run after the command, and what the command returned."""
    return digits_run, export(digits_run, list(formats.FORMATS), calibration=64)


@pytest.mark.slow
def test_every_format_keeps_the_accuracy_of_a_real_student(exported, capsys):
    workdir, rows = exported
    assert [row.format for row in rows] == list(formats.FORMATS)
    meta = json.loads((workdir / "export/meta.json").read_text())
    assert meta["top1"] > 80
    for row in rows:
        assert row.agreement >= (100 if formats.FORMATS[row.format].exact else 98), row
        assert abs(row.drop - (meta["top1"] - row.top1)) < 1e-9
        assert row.bytes == (workdir / "device" / row.file).stat().st_size
        assert row.milliseconds > 0
        assert 0 < row.megabytes < 1000 or not Path("/proc/self/status").exists()
    size = {row.format: row.bytes for row in rows}
    assert size["tflite_int8"] < size["tflite_float16"] < 0.6 * size["tflite"]


@pytest.mark.slow
def test_a_model_card_and_labels_lie_beside_the_files(exported):
    workdir, rows = exported
    card = (workdir / "device/README.md").read_text()
    for part in (
        "resnet8",
        "digits",
        "1 cross-entropy",
        "Teacher: none",
        "Apache-2.0",
        "78,042",
        "to just\ncover 16x16; the centre of 16x16 cut out. The images here were all",
    ):
        assert part in card, part
    assert measure.table(rows[0].top1 + rows[0].drop, rows) in card
    assert (workdir / "device/labels.txt").read_text().splitlines() == list("0123456789")
    plan = json.loads((workdir / "device/preparation.json").read_text())
    assert plan == json.loads((workdir / "export/meta.json").read_text())["preparation"]
    assert plan["cover"] == plan["crop"] == [16, 16]
    assert json.loads((workdir / "device/report.json").read_text())["rows"] == [
        row._asdict() for row in rows
    ]
    assert not (workdir / "device.atkd-draft").exists()


@pytest.mark.slow
def test_the_example_classifies_image_files(exported, tmp_path):
    workdir, _ = exported
    source = trained.read(workdir).source
    rows = [list(source.test.label).index(k) for k in range(10)]
    for k, image in enumerate(source.test.image[rows]):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    student_file = workdir / "device/student_int8.tflite"
    command = [sys.executable, CLASSIFY, student_file, *sorted(tmp_path.glob("*.png"))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    best = [re.search(r"\.png: (\d) \d", line)[1] for line in done.stdout.splitlines()]
    assert sum(label == str(k) for k, label in enumerate(best)) >= 8


@pytest.mark.slow
def test_the_example_misses_what_was_not_copied(exported, tmp_path):
    workdir, _ = exported
    shutil.copy(workdir / "device/student_int8.tflite", tmp_path)
    shutil.copy(workdir / "device/labels.txt", tmp_path)
    command = [sys.executable, CLASSIFY, tmp_path / "student_int8.tflite", "none.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 1
    assert done.stderr.startswith("preparation.json is not beside ")


def test_the_example_needs_only_a_runtime_numpy_and_pillow():
    found = set()
    for node in ast.walk(ast.parse(CLASSIFY.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module.split(".")[0]}
    allowed = {"ai_edge_litert", "tflite_runtime", "numpy", "PIL"}
    assert found - set(sys.stdlib_module_names) == allowed


@pytest.mark.slow
def test_a_second_export_replaces_the_first_and_nothing_of_the_users(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    export(workdir, ["onnx"])
    (workdir / "device" / "mine").mkdir()
    (workdir / "device" / "mine" / "notes").write_text("notes")
    (workdir / "device" / "labels.txt").write_text("edited")
    for name in ("device.atkd-draft", "device.draft", "device.old"):
        (workdir / name).mkdir()
        (workdir / name / "file").touch()
    export(workdir, ["onnx"])
    found = sorted(path.name for path in (workdir / "device").iterdir())
    assert found == [
        "README.md",
        "labels.txt",
        "mine",
        "preparation.json",
        "report.json",
        "student.onnx",
    ]
    assert (workdir / "device" / "mine" / "notes").read_text() == "notes"
    assert (workdir / "device" / "labels.txt").read_text().startswith("0\n")
    # The first name is ours and says so, the others may be anybody's.
    assert sorted(path.name for path in workdir.glob("device.*")) == ["device.draft", "device.old"]


@pytest.mark.slow
def test_a_file_of_the_users_is_in_the_way(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    shutil.rmtree(workdir / "device", ignore_errors=True)
    (workdir / "device").mkdir()
    (workdir / "device" / "README.md").write_text("all I know")
    refused(workdir, "device/README.md is in the way: it is not from an earlier run")


@pytest.mark.slow
def test_a_command_that_fails_gives_back_what_a_killed_one_had_moved(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    export(workdir, ["onnx"])
    before = files(workdir)
    (workdir / "device").rename(workdir / "device.atkd-old")  # killed between the two renames
    (workdir / "device.atkd-draft").mkdir()
    with pytest.raises(ValueError, match="calibration=0"):
        export(workdir, ["onnx"], calibration=0)
    assert files(workdir) == before


@pytest.mark.slow
def test_two_exports_at_once_are_one_too_many(digits_run):
    with lock(digits_run):
        refused(digits_run, "is in use by process")


@pytest.mark.slow
def test_an_export_edited_by_hand_is_named(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    path = workdir / "export" / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"std": [0, 1, 1]}))
    refused(workdir, r"export/meta.json is not .*\(std is \[0, 1, 1\]\)")


@pytest.mark.slow
def test_a_damaged_summary_is_named(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    (workdir / "summary.json").write_text("null")
    refused(workdir, "summary.json is not the summary of a run .*; move it away")


def test_a_bucket_holds_no_run():
    with pytest.raises(ValueError, match="is a bucket"):
        export(Path("s3://somewhere/run"), ["onnx"])


def files(workdir):
    """All but the lock, which names the process that was last."""
    return {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file() and p.name != "lock"}


def refused(workdir, match, names=("onnx",), **arguments):
    """The command says one line that matches, and leaves the folder as it was."""
    before = files(workdir)
    with pytest.raises(ValueError, match=match) as caught:
        export(workdir, list(names), **arguments)
    assert "\n" not in str(caught.value)
    assert files(workdir) == before


def test_an_unfinished_run_is_named(tmp_path):
    refused(tmp_path, "holds no finished run .*summary.json")


@pytest.mark.slow
def test_an_unknown_format_is_named_on_the_command_line(digits_run):
    done = subprocess.run(
        [sys.executable, "-m", "atkd_jax.export", f"--workdir={digits_run}", "--formats=tflit"],
        capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: unknown format 'tflit'; did you mean 'tflite'?" in done.stderr.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "name", "extra"),
    [
        ("tensorflow", "tflite_int8", "tensorflow-cpu"),
        ("ai_edge_litert", "tflite", '-e ".[litert]"'),
        ("onnxruntime", "onnx", '-e ".[onnx]"'),
    ],
)
def test_a_missing_package_is_named_with_its_extra(package, name, extra, digits_run, monkeypatch):
    there = importlib.util.find_spec
    hidden = lambda p, *rest: None if p == package else there(p, *rest)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    message = f"needs {package}, which is not installed: pip install .*{re.escape(extra)}"
    refused(digits_run, message, [name])


@pytest.mark.slow
def test_no_calibration_images_are_refused(digits_run):
    refused(digits_run, "calibration=0: int8 needs training images", calibration=0)


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--max_drop=nan", "--max_drop: 'nan' is no number from 0 to 100"),  # would allow any
        ("--max_drop=-1", "--max_drop: '-1' is no number from 0 to 100"),
        ("--calibration=0", "--calibration: '0' is no whole number from 1 to"),
    ],
)
def test_a_flag_out_of_its_range_is_named(flag, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", f"--workdir={tmp_path}", flag])
    with pytest.raises(SystemExit, match="2"):
        export_main()
    assert capsys.readouterr().err.startswith(f"error: argument {message}")


@pytest.mark.slow
def test_a_run_of_another_version_is_named(digits_run, tmp_path):
    workdir = rewritten(digits_run, tmp_path)
    summary = json.loads((workdir / "summary.json").read_text())
    del summary["config"]["batch_size"]
    (workdir / "summary.json").write_text(json.dumps(summary))
    refused(workdir, "another version of atkd_jax: its configuration lacks .*batch_size")


def rewritten(run, tmp_path, **data):
    """A copy of a run whose configuration names other data."""
    workdir = tmp_path / "copy"
    shutil.copytree(run, workdir)
    summary = json.loads((run / "summary.json").read_text())
    summary["config"]["data"] |= data
    (workdir / "summary.json").write_text(json.dumps(summary))
    return workdir


@pytest.mark.slow
def test_data_with_other_classes_are_refused(digits_run, tmp_path):
    npz = write_npz(tmp_path / "three.npz")
    refused(rewritten(digits_run, tmp_path, name=f"npz:{npz}"), "number of classes: 10 then, 3 now")


@pytest.mark.slow
def test_data_that_have_changed_are_refused(digits_run, tmp_path):
    npz = write_npz(tmp_path / "ten.npz", classes=10)
    refused(
        rewritten(digits_run, tmp_path, name=f"npz:{npz}"),
        "number of training images: 1437 then, 96",
    )


@pytest.mark.slow
def test_a_file_that_loses_too_much_is_not_kept(digits_run):
    refused(digits_run, r"onnx loses 0\.00 points .* --max_drop=-1;", max_drop=-1.0)


@pytest.mark.slow
def test_a_file_that_is_wrong_is_not_kept(digits_run, monkeypatch):
    def slightly_off(serve, image_shape, _):
        return onnx.convert(lambda image: serve(image) * 1.001, image_shape)

    wrong = formats.FORMATS["onnx"]._replace(convert=slightly_off)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    refused(digits_run, "onnx is wrong: its logits differ")


@pytest.mark.slow
def test_a_file_that_does_not_run_is_not_kept(digits_run, monkeypatch):
    broken = formats.FORMATS["onnx"]._replace(convert=lambda *_: b"not a file")
    monkeypatch.setitem(formats.FORMATS, "onnx", broken)
    refused(digits_run, "student.onnx does not run")


def test_an_interrupt_ends_the_export_with_one_line(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("atkd_jax.export.__main__.export", interrupted)
    monkeypatch.setattr("sys.argv", ["export", f"--workdir={tmp_path}"])
    with pytest.raises(SystemExit, match="^stopped; what was exported before is as it was$"):
        export_main()
