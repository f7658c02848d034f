"""What a route left on a Kafka cluster, told from what others left there, on a cluster that a test makes up."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from crossfade.brokers.kafka import KafkaInspector, KafkaSettings, doctor
from crossfade.brokers.protocol import Document

ROUTE = "mine"


@dataclass
class FakeCluster:
    """Topics, groups and documents of a cluster; stands for its admin handle and for the board."""

    topics: list[str] = field(default_factory=lambda: ["crossfade.control"])
    groups: list[str] = field(default_factory=list)
    documents: dict[str, bytes] = field(default_factory=dict)

    async def topic_names(self, prefix: str) -> list[str]:
        return [name for name in self.topics if name.startswith(prefix)]

    async def group_names(self, prefix: str) -> list[str]:
        return [name for name in self.groups if name.startswith(prefix)]

    async def list(self, prefix: str) -> dict[str, Document]:
        return {name: Document(1, body) for name, body in self.documents.items() if name.startswith(prefix)}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    made = FakeCluster()

    class Handle:
        topic_names, group_names, list = made.topic_names, made.group_names, made.list

        def __init__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    class Board(Handle):
        async def close(self) -> None:
            pass

    monkeypatch.setattr(doctor, "Cluster", Handle)
    monkeypatch.setattr(doctor, "KafkaBoard", Board)
    return made


async def footprint(route: str = ROUTE) -> list[str]:
    return await KafkaInspector(KafkaSettings({"bootstrap.servers": "127.0.0.1:1"}), "messages").footprint(route)


async def test_the_board_goes_with_its_last_documents(cluster: FakeCluster) -> None:
    cluster.documents = {f"started/{ROUTE}": b"{}", "target/messages": b'{"route": "%s"}' % ROUTE.encode()}
    mine = [f"document started/{ROUTE}", "document target/messages"]
    assert await footprint() == [*mine, "topic crossfade.control"]
    cluster.documents["started/other"] = b"{}"
    assert await footprint() == mine


async def test_a_board_that_an_interrupted_removal_left_empty_goes_with_the_next_one(cluster: FakeCluster) -> None:
    assert await footprint() == ["topic crossfade.control"]
    cluster.documents = {"started/other": b"{}"}
    assert await footprint() == []
    cluster.documents, cluster.topics = {}, []
    assert await footprint() == []


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (f"status/other/{ROUTE}", b"{}"),
        (f"{ROUTE}/other", b"{}"),
        (f"target/{ROUTE}", b'{"route": "other"}'),
        ("status/other/relay-1", b'{"route": "%s"}' % ROUTE.encode()),
    ],
)
async def test_a_document_of_another_route_stays_whatever_its_name_contains(
    cluster: FakeCluster, name: str, body: bytes
) -> None:
    cluster.documents = {name: body, f"status/{ROUTE}/relay-1": b"{}"}
    assert await footprint() == [f"document status/{ROUTE}/relay-1"]


@pytest.mark.parametrize("route", ["started", "status", "target", "other"])
async def test_an_id_that_other_documents_contain_claims_none_of_them(cluster: FakeCluster, route: str) -> None:
    cluster.documents = {"started/one": b"{}", "status/one/other": b"{}", "target/other": b'{"route": "one"}'}
    assert await footprint(route) == []


async def test_topics_of_applications_stay_whatever_they_are_called(cluster: FakeCluster) -> None:
    own = [f"crossfade.{ROUTE}.lanes", f"crossfade.{ROUTE}.quarantine"]
    cluster.topics = [*own, f"crossfade.{ROUTE}.orders", f"crossfade.{ROUTE}.orders.lanes"]
    cluster.groups = [f"crossfade.{ROUTE}", f"crossfade.{ROUTE}-too"]
    assert await footprint() == [*(f"topic {name}" for name in own), f"group crossfade.{ROUTE}"]
