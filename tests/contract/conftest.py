"""The whole contract is asked of the ten methods that the five papers are about in ``make test``.

Of the systems they compare with, ``make test`` asks what a user would meet first, and ``make test-slow`` the rest.
"""

import pytest

MAIN = {"patchcore", "nkd", "rd", "rdpp", "fmam", "cdd", "softpatch", "ckaad", "deepsad", "devnet"}
FIRST = (
    "test_the_entry_is_whole",
    "test_options_",
    "test_shapes_",
    "test_a_saved_and_loaded_method_",
)
LONG = {"cdd", "rdpp", "ckaad", "fmam"}
SEVERAL = (
    "test_bf16_learns_",
    "test_stopped_and_",
    "test_another_seed_",
    "test_grey_",
    "test_an_input_",
    "test_copies_",
)
"""Of the ten, those whose several trainings are left to ``make test-slow``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("name")  # type: ignore[attr-defined]
        if "test_methods.py" not in item.nodeid or not name:
            continue
        if (name not in MAIN and not item.name.startswith(FIRST)) or (name in LONG and item.name.startswith(SEVERAL)):
            item.add_marker(pytest.mark.slow)
