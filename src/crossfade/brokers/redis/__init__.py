"""Redis and Valkey: stream keys as lanes, a hash as the board, and what doctor asks of the server."""

from .board import RedisBoard
from .log import RedisLog
from .settings import Address, RedisSettings, TlsSettings

__all__ = ["Address", "RedisBoard", "RedisLog", "RedisSettings", "TlsSettings"]
