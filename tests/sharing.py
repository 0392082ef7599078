"""Which tests stay together where several processes share them: `pytest -n 2`, as `make fast` calls it.

The tests of one file stay together, because they share what the file has made. Some folders stay together as a whole:
what they share takes long to make, or each of their tests starts several processes at once.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

TOGETHER = (
    "tests/first_day/",  # one release that is built and installed
    "tests/parallel/",  # runs of two and four processes, which choose their ports themselves
)


def group_of(test: str) -> str:
    """The folder or file whose tests are run by the process that runs this one, by its name "FILE::TEST"."""
    file = test.partition("::")[0]
    return next((folder for folder in TOGETHER if file.startswith(folder)), file)


class Sharing(LoadScopeScheduling):
    """Each process takes the next group when it has nearly finished its last one.

    The groups keep the order in which pytest found them: by the number of their tests, which is xdist's order, those
    with few long tests would be the last.
    """

    def schedule(self) -> None:
        self.config.option.loadscopereorder = False
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
