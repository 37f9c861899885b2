"""Published numbers that the tests of these bricks read from the bricks themselves, or never see."""

from blemish.methods import aabigan, destseg, draem
from blemish.ops import deviation, lof


def test_published_numbers():
    assert deviation.REFERENCES == 5000
    assert lof.LEAST == 1e-3  # docs/methods/softpatch.md: a thousandth of the median
    assert (aabigan.SLOWER, aabigan.EVERY) == (0.98, 100)
    assert (draem.SPOILED, draem.GAMMA, draem.POOLED) == (0.5, 2.0, 21)
    assert (destseg.TOP, destseg.GAMMA) == (100, 4.0)
