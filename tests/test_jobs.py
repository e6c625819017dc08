"""The name of a job is what it computes."""

import pytest

from experiments.queue import jobs


def test_the_name_of_a_run_is_what_it_computes():
    kd = jobs.resolve("digits:method=kd")
    assert jobs.resolve("digits:method=kd", seed=1).hash != kd.hash
    assert jobs.resolve("digits:method=at").hash != kd.hash
    assert jobs.resolve("digits:method=at").teacher.hash == kd.teacher.hash
    assert jobs.resolve("digits:method=kd", seed=4).teacher.hash == kd.teacher.hash
    assert jobs.resolve("digits:method=kd", role="teacher").hash == kd.teacher.hash
    moved = jobs.resolve("digits:method=kd").config
    moved.parallel, moved.data.data_dir = "pmap", "/elsewhere"
    assert jobs.name_of(moved.to_dict()) == kd.hash
    later = kd.config.to_dict()
    del later["accumulate"]  # a result from before this key existed
    assert jobs.name_of(later) == kd.hash
    pairs = [f"cifar100:method=none,pair={pair}" for pair in ("r56_r20", "r110_r20")]
    assert len({jobs.resolve(text).hash for text in pairs}) == 1  # alone, there is no teacher


def test_quick_is_one_cycle_and_shrinks_warm_ups():
    run = jobs.resolve("cifar100:method=dkd,pair=r56_r20", protocol="quick")
    assert (run.config.epochs, run.config.schedule.name) == (30, "onecycle")
    assert run.config.terms.dkd.warmup_epochs == 20 * 30 / 240
    assert run.config.optimizer.lr == 0.1
    assert run.teacher.config.epochs == 30
    longer = jobs.resolve("cifar100:method=dkd,pair=r56_r20", protocol="longer")
    assert (longer.config.epochs, longer.teacher.config.epochs) == (90, 90)
    assert longer.config.terms.dkd.warmup_epochs == 20 * 90 / 240
    brief = jobs.resolve("cifar100:method=dkd,pair=r56_r20", protocol="brief")
    assert (brief.config.batch_size, brief.config.optimizer.lr) == (256, 0.2)
    assert {brief.config.epochs, brief.teacher.config.epochs} == {12}
    both = [jobs.resolve("imagenet:method=kd", protocol=p).config for p in ("quick", "brief")]
    assert both[0].batch_size == both[1].batch_size == 1024
    assert both[0].optimizer.lr == both[1].optimizer.lr
    paper = jobs.resolve("cifar100:method=dkd,pair=r56_r20")
    assert (paper.config.epochs, paper.config.schedule.name) == (240, "step")
    assert paper.config.terms.dkd.warmup_epochs == 20


@pytest.mark.parametrize(
    "text, message",
    [
        ("cifar11:method=kd", r"no configs/cifar11\.py"),
        ("cifar10:method=kdd", "did you mean 'kd'"),
        ("cifar10:methd=kd", "did you mean 'method'"),
    ],
)
def test_a_configuration_that_does_not_exist_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        jobs.resolve(text)


def test_steps_become_epochs_and_a_seed_chooses_the_images():
    text = "few_images:method=kd,images=500,steps=781"
    job, other = (jobs.resolve(text, seed=seed) for seed in (0, 1))
    assert (job.config.epochs, job.config.data.subset.images) == (112, 500)  # of 7 steps
    assert (job.config.data.subset.seed, other.config.data.subset.seed) == (0, 1)
    assert jobs.group_of(job) == jobs.group_of(jobs.resolve(text.replace("kd", "atkd")))
    assert {jobs.resolve(text, protocol=p).hash for p in jobs.PROTOCOLS} == {job.hash}
    whole = jobs.resolve("few_images:method=kd,images=50000,steps=781").config
    assert (whole.epochs, whole.data.subset.images) == (1, 0)


def test_published_weights_belong_to_a_data_set():
    text = "cifar100:method=kd,pair=r56_r20,teacher=chenyaofo"
    assert jobs.resolve(text).config.teacher.expect_top1 == 72.63
    with pytest.raises(ValueError, match="no weights of resnet56a are published"):
        jobs.resolve(text.replace("chenyaofo", "akamaster"))
