"""Real servers for the tests that are marked `lab`: started once per session, only when a test asks for them.

`make matrix` runs tests on others: CROSSFADE_TEST_KAFKA=<version>, CROSSFADE_TEST_REDIS=sentinel|cluster|redis8 (these
stand in for the Valkey).
"""

import os

import pytest
import structlog

from crossfade.lab.errors import LabError
from crossfade.lab.lab import Lab
from crossfade.lab.packages import KAFKA_VERSION


def _start(name, **options):
    try:
        return Lab.up(f"{name}-{os.getpid()}", owner_pid=os.getpid(), **options)
    except (LabError, OSError) as error:
        reason = f"the servers cannot start here: {error}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def _logging_as_found():
    """A command under test sets up logging for its process; the next test starts afresh."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def lab():
    """Three Kafka brokers and a Valkey, behind proxies."""
    version = os.environ.get("CROSSFADE_TEST_KAFKA", KAFKA_VERSION)
    flavour = "redis8" if os.environ.get("CROSSFADE_TEST_REDIS") == "redis8" else "valkey"
    started = _start("tests", brokers=3, redis="standalone", kafka_version=version, redis_flavour=flavour)
    yield started
    started.down()


@pytest.fixture(scope="session")
def valkey_lab():
    """A Valkey alone, for tests that need no Kafka."""
    other = os.environ.get("CROSSFADE_TEST_REDIS", "standalone")
    options = {"redis_flavour": other} if other == "redis8" else {"redis": other}
    started = _start("tests-valkey", brokers=0, **options)
    yield started
    started.down()


@pytest.fixture(scope="session")
def redis7_lab():
    """A Redis 7.0: the oldest that is supported, without what later versions added."""
    started = _start("tests-redis7", brokers=0, redis="standalone", redis_flavour="redis7")
    yield started
    started.down()
