"""Every module is examined once, when the first test asks for it."""

from collections.abc import Callable

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.modules.examination import Examined, examine

Examiner = Callable[[str], Examined]


class ByModule(LoadFileScheduling):
    """The tests of one PKCS#11 module run in one process: each of them has a token, and what that needs, once."""

    def _split_scope(self, nodeid: str) -> str:
        """The parameter in brackets; the file for a test that has none."""
        _, bracket, parameter = nodeid.partition("[")
        return parameter if bracket else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByModule | None:
    """Asked for by `--dist loadgroup`."""
    return ByModule(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(scope="session")
def examined(tmp_path_factory: pytest.TempPathFactory) -> Examiner:
    """What was found out about a module."""
    found: dict[str, Examined] = {}

    def find(name: str) -> Examined:
        if name not in found:
            # Sockets must have short paths.
            found[name] = examine(name, tmp_path_factory.mktemp("m"))
        return found[name]

    return find
