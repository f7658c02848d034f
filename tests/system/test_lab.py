"""The lab on real servers: what it starts works through the proxies, what it breaks heals, what it owned is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from confluent_kafka import Consumer, KafkaException, Producer

from crossfade.cli.main import run
from crossfade.lab import Lab, LabError, LabUsage
from crossfade.lab.process import Process, identify, tagged, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    root = tmp_path_factory.mktemp("labs")
    before = os.environ.get("CROSSFADE_LAB_ROOT")
    os.environ["CROSSFADE_LAB_ROOT"] = str(root)
    try:
        with Lab.up("system", owner_pid=os.getpid()) as lab:
            yield lab
        assert tagged(root / "system") == []
        assert not (root / "system").exists()
    finally:
        os.environ.pop("CROSSFADE_LAB_ROOT")
        if before is not None:
            os.environ["CROSSFADE_LAB_ROOT"] = before


def producer(lab: Lab, **more: object) -> Producer:
    quiet = {"log_level": 0, "reconnect.backoff.max.ms": 200, "socket.timeout.ms": 4000}
    return Producer({**lab.kafka_properties(), **quiet, "acks": "all", "enable.idempotence": True, **more})


def write(lab: Lab, topic: str, records: int, partitions: int = 1) -> None:
    acked: list[int] = []
    client = producer(lab)
    for number in range(records):
        client.produce(
            topic,
            b"%d" % number,
            partition=number % partitions,
            on_delivery=lambda error, _: acked.append(1) if error is None else None,
        )
    assert client.flush(30) == 0
    assert len(acked) == records


def read(lab: Lab, topic: str, records: int) -> list[bytes]:
    client = Consumer({**lab.kafka_properties(), "group.id": f"r-{topic}", "auto.offset.reset": "earliest"})
    client.subscribe([topic])
    out: list[bytes] = []
    deadline = time.monotonic() + 30
    while len(out) < records and time.monotonic() < deadline:
        out += [message.value() for message in client.consume(1000, 0.5) if message.error() is None]
    client.close()
    return out


def test_records_go_through_the_proxies(lab: Lab) -> None:
    lab.create_topic("through", 4)
    before = {link["link"]: link["request_bytes"] for link in lab.status()["links"]}
    write(lab, "through", 4000, 4)
    assert sorted(read(lab, "through", 4000)) == sorted(b"%d" % number for number in range(4000))
    after = {link["link"]: link["request_bytes"] for link in lab.status()["links"]}
    assert all(after[name] > before[name] for name in ("kafka-1", "kafka-2", "kafka-3"))
    described = lab.admin.describe("through")
    assert {len(partition.replicas) for partition in described.partitions} == {3}


def test_status_and_env_name_what_runs(lab: Lab) -> None:
    status = lab.status()
    assert status["running"]
    assert [server["state"] for server in status["servers"]] == ["running"] * 4
    assert all(identify(server["pid"]) for server in status["servers"])
    env = lab.env()
    assert len(env["KAFKA_BOOTSTRAP"].split(",")) == 3
    assert not set(env["KAFKA_BOOTSTRAP"].split(",")) & set(env["KAFKA_BOOTSTRAP_DIRECT"].split(","))
    assert env["REDIS_URL"] != env["REDIS_URL_DIRECT"]
    json.dumps(status)


def test_a_second_up_of_the_same_name_is_refused(lab: Lab) -> None:
    with pytest.raises(LabUsage, match="already running"):
        Lab.up("system")


def test_killing_a_leader_moves_the_leader_and_the_broker_comes_back(lab: Lab) -> None:
    lab.create_topic("killed", 1)
    write(lab, "killed", 100)
    fault = lab.faults.kill_leader("killed", heal_after_s=6)
    assert fault.observed["pid_gone"]
    assert identify(fault.observed["old_pid"]) is None
    assert fault.observed["new_leader"] != fault.observed["old_leader"]
    assert fault.observed["leader_after_s"] < 12
    write(lab, "killed", 100)  # two of three copies are enough
    fault.wait_healed(60)
    assert lab.admin.wait_brokers(3, 30)
    assert len(read(lab, "killed", 200)) == 200


def test_a_moved_leader_was_not_restarted(lab: Lab) -> None:
    lab.create_topic("moved", 2)
    before = {server["name"]: server["pid"] for server in lab.status()["servers"]}
    fault = lab.faults.move_leader("moved", 1)
    assert fault.observed["new_leader"] != fault.observed["old_leader"]
    # Any broker may answer, and one that has just come back (the test above) names the old leader for a moment.
    assert wait_until(lambda: lab.kafka_leader("moved", 1) == fault.observed["new_leader"], 30)
    assert before == {server["name"]: server["pid"] for server in lab.status()["servers"]}


def test_a_cut_link_heals_by_its_deadline(lab: Lab) -> None:
    with lab.client_of_redis(direct=False) as client:
        assert client.ping()
        fault = lab.faults.cut("redis-0", heal_after_s=1.5)
        assert fault.observed["connections_reset"] == 1
        with pytest.raises((ConnectionError, OSError)):
            lab_connect(lab)
        with lab.client_of_redis(direct=True) as past:
            assert past.ping()  # the server itself is well
        took_s = fault.wait_healed(10)
        assert 1.4 < took_s < 4
        assert client.ping()


def lab_connect(lab: Lab) -> None:
    import socket

    link = lab.state.link("redis-0")
    with socket.create_connection(("127.0.0.1", link.port), timeout=1):
        pass


def test_held_replies_arrive_after_the_heal(lab: Lab) -> None:
    with lab.client_of_redis(direct=False) as client, lab.client_of_redis() as past:
        client.ping()
        fault = lab.faults.hold_replies("redis-0", heal_after_s=3)
        answers: list[bytes] = []
        asker = threading.Thread(target=lambda: answers.append(client.xadd("held", {"a": "1"})))
        asker.start()
        assert wait_until(lambda: past.xlen("held") == 1, 10)  # applied, but unknown to who asked
        assert wait_until(lambda: fault.observe()["bytes_held"] > 0, 10)
        assert answers == []
        asker.join(10)
        assert answers == [past.xrange("held")[0][0]]
        assert fault.observe()["bytes_held"] == 0


def test_a_frozen_server_thaws_though_nobody_asks(lab: Lab) -> None:
    fault = lab.faults.freeze("redis-0", heal_after_s=1.5)
    assert fault.observed["frozen"]
    assert lab.state.server("redis-0").process.is_frozen()
    fault.wait_healed(10)
    with lab.client_of_redis() as client:
        assert client.ping()


def test_a_fault_heals_though_its_author_is_killed(lab: Lab) -> None:
    code = """
import os, signal
from crossfade.lab import Lab
lab = Lab.load("system")
lab.faults.freeze("redis-0", heal_after_s=2)
lab.faults.cut("kafka-2", heal_after_s=2)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    assert lab.state.server("redis-0").process.is_frozen()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        links = {link["link"]: link["mode"] for link in lab.status()["links"]}
        if not lab.state.server("redis-0").process.is_frozen() and links["kafka-2"] == "pass":
            break
        time.sleep(0.1)
    assert not lab.state.server("redis-0").process.is_frozen()
    assert links["kafka-2"] == "pass"


def test_a_topic_comes_back_though_whoever_deleted_it_is_killed(lab: Lab) -> None:
    lab.create_topic("deleted", 2, {"retention.ms": "600000"})
    code = """
import os, signal
from crossfade.lab import Lab, faults
from crossfade.lab.admin import KafkaAdmin
faults._RECREATE_S = 5.0
KafkaAdmin.create_topic = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Lab.load("system").faults.recreate_topic("deleted")
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert wait_until(lambda: len(lab.admin.leaders("deleted")) == 2, 60)
    assert lab.admin.configs_set("deleted")["retention.ms"] == "600000"


def test_trimmed_and_recreated_lanes_are_seen_as_such(lab: Lab) -> None:
    lab.create_topic("lost", 1, {"retention.ms": "600000"})
    write(lab, "lost", 50)
    assert lab.faults.trim_topic("lost", before=20).observed["removed_offsets"] == 20
    fault = lab.faults.recreate_topic("lost")
    assert fault.observed["old_id"] != fault.observed["new_id"]
    assert lab.admin.ends("lost", 0) == (0, 0)
    assert lab.admin.configs_set("lost")["retention.ms"] == "600000"
    with lab.client_of_redis() as client:
        for number in range(10):
            client.xadd("trimmed", {"n": number})
        assert lab.faults.trim_stream("trimmed", keep_records=3).observed["removed_records"] == 7
        assert lab.faults.recreate_key("trimmed").observed["removed_records"] == 3
        assert client.xlen("trimmed") == 0
        assert client.exists("trimmed")


def test_a_cut_append_only_file_loses_its_tail_and_no_more(lab: Lab) -> None:
    with lab.client_of_redis() as client:
        for number in range(1000):
            client.xadd("tail", {"n": number})
    fault = lab.faults.cut_aof_tail("redis-0", 5000)
    assert fault.observed["size_before_bytes"] - fault.observed["size_after_bytes"] == 5000
    with lab.client_of_redis() as client:
        kept = [int(fields[b"n"]) for _, fields in client.xrange("tail")]
    assert 800 < len(kept) < 1000
    assert kept == list(range(len(kept)))


def test_a_full_disk_refuses_writes_until_it_heals(lab: Lab) -> None:
    def write(text: str) -> str:
        try:
            client.xadd("full", {"n": text})
        except redis.exceptions.ResponseError as error:
            return str(error)
        return ""

    with lab.client_of_redis() as client:
        assert write("before") == ""
        fault = lab.faults.disk_full("redis-0", heal_after_s=60)
        assert fault.observed["disk_is_full"]
        assert wait_until(lambda: "MISCONF" in write("while"), 15)
        fault.heal()
        assert wait_until(lambda: write("after") == "", 15)
        assert client.xrevrange("full", count=1)[0][1] == {b"n": b"after"}
    assert not fault.observe()["server_ended"]


@pytest.mark.long
def test_a_broker_ends_of_a_full_disk_and_comes_back(lab: Lab) -> None:
    lab.create_topic("disk", 1)
    write(lab, "disk", 100)
    leader = lab.kafka_leader("disk")
    fault = lab.faults.disk_full(leader, heal_after_s=8)
    write(lab, "disk", 100)  # the other two have room
    assert wait_until(lambda: lab.kafka_leader("disk") != leader, 30)
    assert wait_until(lambda: fault.observe()["server_ended"], 5)
    fault.wait_healed(60)
    assert lab.admin.wait_brokers(3, 30)
    assert len(read(lab, "disk", 200)) == 200


def test_an_unknown_server_or_link_is_named_with_the_known_ones(lab: Lab) -> None:
    with pytest.raises(LabUsage) as caught:
        lab.faults.kill("kafka-9")
    assert "kafka-1" in caught.value.hint
    with pytest.raises(LabUsage) as caught:
        lab.faults.cut("nowhere")
    assert "redis-0" in caught.value.hint


def test_a_lab_ends_with_its_owner(tmp_path: Path) -> None:
    code = """
import os, time
from crossfade.lab import Lab
Lab.up("owned", brokers=0, redis="replica", owner_pid=os.getpid())
print("up", flush=True)
time.sleep(600)
"""
    env = {**os.environ, "CROSSFADE_LAB_ROOT": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        try:
            assert owner.stdout.readline() == "up\n"
            folder = tmp_path / "owned"
            found = tagged(folder)
        finally:
            owner.kill()
    assert len(found) == 4  # two servers, the proxy, the watchdog
    deadline = time.monotonic() + 15
    while (tagged(folder) or folder.exists()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tagged(folder) == []
    assert not folder.exists()


def test_a_lab_ends_when_its_folder_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    lab = Lab.up("removed", brokers=0)
    assert len(tagged(lab.folder)) == 3
    shutil.rmtree(lab.folder)
    assert wait_until(lambda: tagged(lab.folder) == [], 15)


def test_a_stopped_lab_starts_again_on_its_data_and_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    lab = Lab.up("kept", brokers=0, owner_pid=os.getpid())
    try:
        env = lab.env()
        with lab.client_of_redis(direct=False) as client:
            client.xadd("kept", {"a": "1"})
        lab.down(remove_data=False)
        assert tagged(lab.folder) == []
        assert run(["lab", "workload", "kept"]) == 1
        again = Lab.resume("kept", owner_pid=os.getpid())
        assert again.env() == env
        with again.client_of_redis(direct=False) as client:
            assert client.xlen("kept") == 1
        with pytest.raises(LabUsage, match="already running"):
            Lab.resume("kept")
    finally:
        lab.down()


def test_a_lab_whose_proxy_is_gone_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    with Lab.up("halved", brokers=0, owner_pid=os.getpid()) as lab:
        assert run(["lab", "status", "halved"]) == 0
        Process(*lab.state.helpers["proxy"]).kill()
        assert run(["lab", "status", "halved"]) == 1


def test_a_server_that_cannot_start_is_named_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    with Lab.up("broken", brokers=0, owner_pid=os.getpid()) as lab:
        lab.stop_server("redis-0")
        config = lab.folder / "config" / "redis-0.conf"
        config.write_text(config.read_text() + "no-such-setting yes\n")
        with pytest.raises(LabError, match="redis-0 ended while starting") as caught:
            lab.start_server("redis-0")
        assert "no-such-setting" in caught.value.hint


def test_a_silent_producer_sees_a_half_open_broker(lab: Lab) -> None:
    lab.create_topic("silent", 1)
    leader = lab.kafka_leader("silent")
    client = producer(lab, **{"message.timeout.ms": 2000})
    client.produce("silent", b"before")
    assert client.flush(10) == 0
    fault = lab.faults.half_open(leader, heal_after_s=4)
    failed: list[str] = []
    try:
        client.produce("silent", b"lost", on_delivery=lambda error, _: failed.append(error.name()) if error else None)
        client.flush(10)
    except KafkaException as error:
        failed.append(str(error))
    assert failed
    assert fault.observe()["bytes_dropped"] > 0
    fault.wait_healed(10)
    write(lab, "silent", 5)


def test_a_secured_lab_lets_in_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    with Lab.up("secured", brokers=1, secure=True, owner_pid=os.getpid()) as lab:
        lab.create_topic("t")
        outcome: dict[str, str] = {}
        cases = [("CLIENT", "app"), ("SASLPLAIN", "app"), ("MTLS", "app"), ("OAUTH", "app"), ("CLIENT", "nobody")]
        for listener, user in cases:
            properties = lab.kafka_properties(listener=listener, user=user)
            client = Producer({**properties, "acks": "all", "message.timeout.ms": 30_000, "log_level": 0})

            def delivered(error: object, _: object, name: str = f"{listener} {user}") -> None:
                outcome[name] = "written" if error is None else error.name()  # type: ignore[attr-defined]

            client.produce("t", listener.encode(), on_delivery=delivered)
            client.flush(40)
        assert outcome.pop("CLIENT nobody") == "TOPIC_AUTHORIZATION_FAILED"
        assert outcome == {f"{listener} app": "written" for listener, _ in cases[:-1]}
        with redis.Redis.from_url(lab.redis_url()) as client:
            assert client.xadd("s", {"a": "1"})
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.config_get("*")
        assert run(["lab", "workload", "secured", "--records", "500", "--rate", "0"]) == 0
        with redis.Redis.from_url(lab.redis_url(user="nobody")) as client:
            assert client.ping()
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.xlen("s")


def test_sentinels_move_the_primary_and_clients_stay_behind_proxies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    with Lab.up("guarded", brokers=0, redis="sentinel", owner_pid=os.getpid()) as lab:
        addresses = [
            (host, int(port)) for host, port in (a.split(":") for a in lab.env()["REDIS_SENTINELS"].split(","))
        ]
        guard = redis.Sentinel(addresses, socket_timeout=2)
        proxied = {link.port for link in lab.state.links}
        first = guard.discover_master("crossfade")[1]
        assert first == lab.state.link("redis-0").port
        lab.faults.kill("redis-0", heal_after_s=30)

        def primary() -> int:
            try:
                return int(guard.discover_master("crossfade")[1])
            except redis.sentinel.MasterNotFoundError:
                return first

        assert wait_until(lambda: primary() != first, 30)
        assert primary() in proxied
        with redis.Redis(port=primary(), socket_timeout=5) as client:
            assert client.xadd("after", {"a": "1"})
            assert run(["lab", "workload", "guarded", "--lanes", "1", "--records", "500", "--rate", "0"]) == 0
            assert client.xlen("msg:stream:0") == 500


def test_a_cluster_redirects_to_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CROSSFADE_LAB_ROOT", str(tmp_path))
    with Lab.up("spread", brokers=0, redis="cluster", owner_pid=os.getpid()) as lab:
        host, port = lab.env()["REDIS_NODES"].split(",")[0].split(":")
        with redis.RedisCluster(host=host, port=int(port)) as client:
            for number in range(60):
                client.xadd(f"k{number}", {"n": number})
        used = [link["link"] for link in lab.status()["links"] if link["request_bytes"] > 0]
        assert used[:3] == ["redis-0", "redis-1", "redis-2"]
        assert lab.faults.trim_stream("k7").observed["removed_records"] == 1
        assert run(["lab", "workload", "spread"]) == 2
