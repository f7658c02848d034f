"""Error replies as the servers word them, and what the relay makes of each."""

import hiredis
import pytest

from crossfade.brokers.redis.replies import Moved, as_error, check, info_fields
from crossfade.errors import AccessRefused, BrokerError, Kind, Unreachable


@pytest.mark.parametrize(
    ("text", "kind", "hint"),
    [
        ("LOADING Redis is loading the dataset in memory", Unreachable, "LOADING"),
        ("READONLY You can't write against a read only replica.", Unreachable, ""),
        ("MISCONF Redis is configured to save RDB snapshots", Unreachable, ""),
        ("CLUSTERDOWN Hash slot not served", Unreachable, ""),
        ("MASTERDOWN Link with MASTER is down", Unreachable, ""),
        ("NOREPLICAS Not enough good replicas to write.", Unreachable, ""),
        ("BUSY Redis is busy running a script.", Unreachable, ""),
        ("ERR max number of clients reached", Unreachable, "maxclients"),
        (
            "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
            Unreachable,
            "state changed",
        ),
        ("ERR WAIT cannot be used with replica instances. Please also note that writes", Unreachable, "WAIT"),
        ("ERR Script killed by user with SCRIPT KILL. script: f0, on @user_script:1.", Unreachable, "SCRIPT KILL"),
        ("MOVED 3999 127.0.0.1:6381", Moved, ""),
        ("ASK 3999 127.0.0.1:6381", Moved, ""),
        ("NOAUTH Authentication required.", AccessRefused, "password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", AccessRefused, "password"),
        ("ERR AUTH <password> called without any password configured", AccessRefused, "password"),
        ("NOPERM User app has no permissions to run the 'xinfo|stream' command", AccessRefused, "+xinfo|stream"),
        ("NOPERM this user has no permissions to access one of the keys used", AccessRefused, "key"),
        ("EXECABORT Transaction discarded because of: NOPERM ... run the 'xrange' command", AccessRefused, "+xrange"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", AccessRefused, "no stream"),
        ("ERR unknown command 'XINFO'", AccessRefused, "disables"),
        ("ERR something else", BrokerError, "not expected"),
    ],
)
def test_error_replies(text, kind, hint):
    error = as_error(hiredis.ReplyError(text), "reading")
    assert type(error) is kind
    assert error.kind is (Kind.RETRY if issubclass(kind, Unreachable) else Kind.HALT)
    assert hint in error.hint
    assert str(error).startswith("reading: ")
    assert error.hint


def test_check_passes_values_and_raises_errors():
    assert check([1, None], "reading") == [1, None]
    with pytest.raises(AccessRefused):
        check(hiredis.ReplyError("NOAUTH"), "reading")


def test_info_lines():
    assert info_fields(b"# Server\r\nredis_version:7.2.4\r\nos:Linux: a b\r\n\r\n") == {
        "redis_version": "7.2.4",
        "os": "Linux: a b",
    }
