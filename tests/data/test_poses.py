"""Good images in the poses that parts have."""

import numpy as np
import pytest
import torch

from blemish.contract import Batch
from blemish.data.poses import PosedImages, turned
from blemish.errors import ConfigError
from blemish.ops.passes import hold_out
from blemish.run import Run


class Pictures:
    def __init__(self, count: int, size: tuple[int, int]) -> None:
        self.pictures = torch.from_numpy(np.random.default_rng(0).random((count, 3, *size), dtype=np.float32))

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def parts(self):
        return range(len(self))

    def batch(self, indices):
        return Batch(self.pictures[list(indices)], tuple(f"key{index}" for index in indices))


@pytest.mark.parametrize(("poses", "number"), [("none", 1), ("flips", 4), ("turns", 8), ("all", 12)])
def test_every_image_comes_in_every_pose_itself_first_and_each_with_its_own_key(poses, number):
    pictures = Pictures(3, (12, 12))
    posed = PosedImages(pictures, poses)
    assert len(posed) == 3 * number
    batch = posed.batch(range(len(posed)))
    assert len(set(batch.keys)) == len(posed)
    assert torch.equal(batch.images[::number], pictures.pictures)
    assert batch.keys[::number] == ("key0", "key1", "key2")
    again = posed.batch([2 * number, 1])
    assert torch.equal(again.images, batch.images[[2 * number, 1]])
    distinct = {image.numpy().tobytes() for image in batch.images}
    assert len(distinct) == len(posed)


def test_what_is_held_out_is_held_out_in_every_pose():
    posed = PosedImages(Pictures(10, (12, 12)), "flips")
    held, learned = hold_out(posed, 0.2, Run())
    assert len(held) == 8 and sorted(held + learned) == list(range(40))
    assert {index // 4 for index in held}.isdisjoint({index // 4 for index in learned})
    assert hold_out(posed, 0.05, Run())[0] == []


def test_a_turn_by_grid_is_the_turn_by_exchange_of_pixels():
    image = Pictures(1, (16, 16)).pictures[0]
    for degrees in (90, 180, 270):
        assert torch.allclose(
            turned(image, degrees + 1e-4, False), torch.rot90(image, degrees // 90, (-2, -1)), atol=1e-3
        )
    assert torch.equal(turned(image, 0, True), image.flip(-1))


def test_a_wide_picture_is_turned_without_being_stretched():
    """A bar along the width, half as wide as the picture is high, stands upright after a quarter turn."""
    image = torch.zeros(1, 40, 80)
    image[:, 18:22, 30:50] = 1
    upright = turned(image, 90, False)[0, :, 20:60] > 0.5  # further out, what is missing was mirrored
    rows, columns = upright.nonzero(as_tuple=True)
    assert [int(edge) for edge in (rows.min(), rows.max(), columns.min(), columns.max())] == [10, 29, 18, 21]


def test_unknown_poses_are_refused():
    with pytest.raises(ConfigError, match="choose none, flips, turns, all"):
        PosedImages(Pictures(1, (8, 8)), "upside down")
