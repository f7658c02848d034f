"""A route whose lane map was altered behind its markers is refused by name, before anything is compared or written."""

import pytest
from kafka_copy import Copy, keys
from kafka_fixture import KafkaBackend

from crossfade.brokers.protocol import Owner
from crossfade.errors import RouteConflict

pytestmark = pytest.mark.lab


@pytest.fixture
async def backend(lab):
    made = KafkaBackend(lab)
    yield made
    await made.close()


async def test_one_target_lane_that_became_three_is_another_route(backend):
    log = await backend.log(3)
    copy = Copy(log)
    await copy.begin()
    paths = tuple((0, lane) for lane in range(3))
    with pytest.raises(RouteConflict, match="copied into one target lane before, now the route maps it to 3"):
        await log.claim(Owner(copy.route, copy.instance, "another digest", paths=paths), paths)
    assert await keys(backend, log) == list(range(10))
    await copy.take()
    await copy.append(10, 5)
    assert await keys(backend, log) == list(range(15))


async def test_three_target_lanes_that_became_one_are_another_route(backend):
    log = await backend.log(3)
    copy = Copy(log, paths=tuple((0, lane) for lane in range(3)))
    await copy.take()
    await log.append(copy.claim, [copy.write(0, 5, path) for path in copy.paths])
    with pytest.raises(RouteConflict, match="another source or with another mapping"):
        await log.claim(Owner(copy.route, copy.instance, "another digest", paths=((0, 0),)), ((0, 0),))
