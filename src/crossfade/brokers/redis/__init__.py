"""Redis and Valkey: stream keys as lanes, a hash as the board, and what doctor asks of the server."""

from .log import RedisLog
from .settings import Address, RedisSettings, TlsSettings

__all__ = ["Address", "RedisLog", "RedisSettings", "TlsSettings"]
