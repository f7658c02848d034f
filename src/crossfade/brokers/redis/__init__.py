"""Redis and Valkey: stream keys as lanes, a hash as the board, and what doctor asks of the server."""

from .board import RedisBoard
from .doctor import RedisInspector
from .lease import RedisLease
from .log import RedisLog
from .settings import Address, RedisSettings, TlsSettings

__all__ = ["Address", "RedisBoard", "RedisInspector", "RedisLease", "RedisLog", "RedisSettings", "TlsSettings"]
