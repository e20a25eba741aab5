"""Batches are pure functions of settings and seed, shards cut them exactly, and fingerprints depend on the data."""

import random

import numpy as np
import pytest
import torch
from data_cases import digits, folder, joined, same

from workers.data.sampling import part
from workers.errors import ConfigError


@pytest.fixture(params=["digits", "files"])
def dataset(request, image_root):
    if request.param == "digits":
        return lambda **changes: digits(**changes)
    return lambda **changes: folder(image_root, **{"calibration_batch_size": 2, "eval_batch_size": 5, **changes})


def test_batches_have_the_declared_shape_and_type(dataset):
    data = dataset()
    data.check()
    batch = next(data.evaluation("test", 0, 1))
    assert batch.images_NCHW.dtype == torch.float32 and batch.labels.dtype == torch.int64
    assert tuple(batch.images_NCHW.shape[1:]) == data.input_shape
    assert batch.labels.min() >= 0 and batch.labels.max() < data.classes


@pytest.mark.parametrize("split", ["test", "bank", "calibration"])
def test_shards_cut_a_split_exactly(dataset, split):
    data = dataset()
    whole = joined(data.evaluation(split, 0, 1))
    assert len(whole[1]) == data.size(split)
    for shards in (2, 3, 7):
        parts = [joined(data.evaluation(split, shard, shards)) for shard in range(shards)]
        assert same(whole, [torch.cat([tensor for tensor in tensors if len(tensor)]) for tensors in zip(*parts, strict=True)])
        assert max(len(labels) for _, labels in parts) - min(len(labels) for _, labels in parts) <= 1


def test_calibration_shards_are_contiguous_ranges_of_the_same_batches(dataset):
    data = dataset()
    whole = list(data.calibration(0, 1))
    assert [len(batch.labels) for batch in whole] == [data.calibration_batch_size] * data.calibration_batches
    for shards in (2, 3, 4):
        cut = [batch for shard in range(shards) for batch in data.calibration(shard, shards)]
        assert len(cut) == len(whole) and all(same(a, b) for a, b in zip(cut, whole, strict=True))


def test_evaluation_on_calibration_sees_the_same_samples(dataset):
    data = dataset()
    assert same(joined(data.calibration(0, 1)), joined(data.evaluation("calibration", 0, 1)))


def test_calibration_draws_without_replacement_and_passes_again_when_the_set_is_small():
    rows = lambda data: {tuple(image.flatten().tolist()) for image in joined(data.calibration(0, 1))[0]}  # noqa: E731
    assert len(rows(digits(calibration_batches=100, calibration_batch_size=4))) >= 398  # a few digits are equal to the pixel
    small = digits(train_size=10, calibration_batches=5, calibration_batch_size=5)
    images, _ = joined(small.calibration(0, 1))
    assert len(rows(small)) == 10
    first, second = images[:10], images[10:20]
    assert {tuple(i.flatten().tolist()) for i in first} == {tuple(i.flatten().tolist()) for i in second}
    assert not torch.equal(first, second)


def test_ranks_get_equal_parts_of_one_global_batch(dataset):
    data = dataset()
    whole = list(data.train(0, 1, epoch=3, batch_size=4))
    for world in (2, 4):
        ranks = [list(data.train(rank, world, epoch=3, batch_size=4)) for rank in range(world)]
        assert {len(batch.labels) for rank in ranks for batch in rank} == {4 // world}
        for step, batch in enumerate(whole):
            assert same(batch, [torch.cat(tensors) for tensors in zip(*(rank[step] for rank in ranks), strict=True)])


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own():
    data = digits(max_shift=0, flip=False, train_size=200)
    epochs = [joined(data.train(0, 1, epoch, 40))[0] for epoch in (0, 1)]
    ordered = joined(data.evaluation("bank", 0, 1))[0]
    key = lambda images: sorted(tuple(image.flatten().tolist()) for image in images)  # noqa: E731
    assert key(epochs[0]) == key(epochs[1]) == key(ordered)
    assert not torch.equal(epochs[0], epochs[1])


def test_training_follows_seed_and_epoch_alone(dataset):
    torch.manual_seed(1)
    random.seed(1)
    first = joined(dataset().train(0, 1, 0, 4))
    torch.manual_seed(2)
    random.seed(2)
    before = torch.get_rng_state(), random.getstate()
    assert same(first, joined(dataset().train(0, 1, 0, 4)))
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()
    assert not torch.equal(first[0], joined(dataset(seed=1).train(0, 1, 0, 4))[0])
    assert not torch.equal(first[0], joined(dataset().train(0, 1, 1, 4))[0])


def test_a_last_part_batch_is_dropped_and_a_batch_larger_than_the_set_refused(dataset):
    data = dataset(train_size=10)
    assert [len(batch.labels) for batch in data.train(0, 1, 0, 4)] == [4, 4]
    with pytest.raises(ConfigError, match=r"batch_size: expected at most 10\b.*got 11"):
        data.train(0, 1, 0, 11)
    with pytest.raises(ConfigError, match=r"batch_size: expected a multiple of .*\b3\b"):
        data.train(0, 3, 0, 4)


def test_subsets_have_the_requested_sizes_and_a_smaller_one_is_part_of_a_larger_one():
    data = digits(train_size=100, test_size=30, bank_size=20)
    assert [data.size(split) for split in ("train", "test", "bank", "calibration")] == [100, 30, 20, 48]
    assert [len(joined(data.evaluation(split, 0, 1))[1]) for split in ("test", "bank")] == [30, 20]
    smaller = {tuple(image.flatten().tolist()) for image in joined(digits(test_size=15).evaluation("test", 0, 1))[0]}
    assert smaller <= {tuple(image.flatten().tolist()) for image in joined(data.evaluation("test", 0, 1))[0]}


@pytest.mark.parametrize("name", ["train_size", "test_size", "bank_size"])
def test_more_samples_than_there_are_is_refused(dataset, name):
    with pytest.raises(ConfigError, match=f"data.{name}: expected at most"):
        dataset(**{name: 5000}).check()


def test_parts_tile_a_range():
    for count in range(20):
        for of in range(1, 8):
            assert [i for index in range(of) for i in part(count, index, of)] == list(range(count))


def test_digits_are_split_by_the_seed_with_equal_shares_of_each_class():
    data = digits()
    assert (data.size("train"), data.size("test"), data.classes) == (1437, 360, 10)
    counts = np.bincount(joined(data.evaluation("test", 0, 1))[1])
    assert counts.min() >= 34 and counts.max() <= 37
    assert not torch.equal(joined(data.evaluation("test", 0, 1))[1], joined(digits(seed=1).evaluation("test", 0, 1))[1])


def test_digits_hold_the_pixels_that_scikit_learn_ships():
    from sklearn.datasets import load_digits

    data = digits(image_size=8, max_shift=0, mean=[0.0], std=[1.0])
    ours = torch.cat([joined(data.evaluation(split, 0, 1))[0] for split in ("bank", "test")])
    assert sorted(map(tuple, (ours * 16).flatten(1).tolist())) == sorted(map(tuple, load_digits().data.tolist()))


def test_shifted_images_are_the_image_moved_and_black_elsewhere():
    data = digits(image_size=8, max_shift=3, flip=False, mean=[0.0], std=[1.0], train_size=40)
    plain = joined(digits(image_size=8, max_shift=0, flip=False, mean=[0.0], std=[1.0], train_size=40).train(0, 1, 0, 40))[0]
    moved = joined(data.train(0, 1, 0, 40))[0]
    shifts = set()
    for before, after in zip(plain[:, 0], moved[:, 0], strict=True):
        wide = torch.zeros(14, 14)
        wide[3:11, 3:11] = before
        matches = [(y, x) for y in range(7) for x in range(7) if torch.equal(wide[y : y + 8, x : x + 8], after)]
        assert matches
        shifts.update(matches)
    assert len(shifts) > 15


def test_about_half_of_the_images_are_mirrored():
    settings = {"image_size": 8, "max_shift": 0, "train_size": 200}
    plain = joined(digits(**settings, flip=False).train(0, 1, 0, 200))[0]
    mirrored = joined(digits(**settings, flip=True).train(0, 1, 0, 200))[0]
    turned = [torch.equal(a.flip(-1), b) for a, b in zip(plain, mirrored, strict=True)]
    assert all(t or torch.equal(a, b) for t, a, b in zip(turned, plain, mirrored, strict=True))
    assert 70 < sum(turned) < 130


def test_normalisation_and_channels():
    grey = joined(digits(mean=[0.0], std=[1.0]).evaluation("test", 0, 1))[0]
    colour = joined(digits(channels=3, mean=[0.1, 0.2, 0.3], std=[0.5, 1.0, 2.0]).evaluation("test", 0, 1))[0]
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1.0), (0.3, 2.0)]):
        torch.testing.assert_close(colour[:, channel], (grey[:, 0] - mean) / std)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"channels": 2}, "data.channels"),
        ({"mean": [0.1, 0.2]}, "data.mean"),
        ({"std": [0.0]}, "data.std"),
        ({"max_shift": 32}, "data.max_shift"),
        ({"train_size": -1}, "data.train_size"),
        ({"seed": -1}, "data.seed"),
        ({"calibration_batches": 0}, "data.calibration_batches"),
    ],
)
def test_bad_settings_are_refused_at_the_door(changes, key):
    with pytest.raises(ConfigError, match=key):
        digits(**changes)


def test_a_fingerprint_depends_on_the_data_and_not_on_how_it_is_cut():
    base = digits().fingerprint()
    for changes in ({"seed": 1}, {"image_size": 16}, {"mean": [0.5]}, {"train_size": 10}):
        assert digits(**changes).fingerprint() != base
    for changes in (
        {"calibration_batches": 9},
        {"shards": 1},
        {"eval_batch_size": 7},
        {"test_size": 9},
        {"bank_size": 9},
        {"max_shift": 1},
    ):
        assert digits(**changes).fingerprint() == base


def test_a_folders_fingerprint_follows_its_files_and_not_its_place(image_root, tmp_path):
    import shutil

    shutil.copytree(image_root, tmp_path / "copy")
    base = folder(image_root).fingerprint()
    assert folder(tmp_path / "copy").fingerprint() == base == folder(image_root, decoders=2).fingerprint()
    assert folder(image_root, seed=1).fingerprint() != base
    shutil.copytree(image_root, tmp_path / "changed")
    changed = tmp_path / "changed" / "train" / "ant" / "0.JPEG"
    changed.write_bytes(changed.read_bytes() + b" ")
    assert folder(tmp_path / "changed").fingerprint() != base
