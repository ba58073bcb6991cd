"""The processes in which the cases are tried: as many as there are processors, over all workers of pytest."""

import os

import fuzzing
import pytest


@pytest.fixture(scope="session")
def pool():
    with fuzzing.Pool(1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count()) as pool:
        yield pool


@pytest.fixture
def endure(pool, request):
    """Fails with all faults of a door, if it has any."""

    def endure(name):
        count = request.config.getoption("hostile_cases") or fuzzing.door(name).cases
        found = fuzzing.report(name, pool.run(name, range(count)))
        if found:
            pytest.fail(found, pytrace=False)

    return endure
