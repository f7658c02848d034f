"""What an address looks like, on Redis and on Kafka, and what a certificate file does.

Hides the forms that people write. Nothing is connected to; files are read. Called by the reader and by secrets.
"""

from __future__ import annotations

import re
from pathlib import Path

USERINFO = re.compile(r"(\w*://)(?:([^:@/]*)(?::(.*))?@)?([^@]*)")
REDIS_URL = re.compile(r"(?:(rediss?)://([^@/?#]+)(?:/(\d*))?|unix:///[^?#]+)")
REDIS_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\s\[\],]+)(:\d{1,5})?")
#: librdkafka also takes the protocol before an address; and none of a port, unlike the tools of Kafka, whose commands
#: are printed with these addresses
KAFKA_SERVER = re.compile(
    r"(?:(?:SASL_)?(?:SSL|PLAINTEXT)://)?(?:\[[0-9a-fA-F:.]+(?:%[\w.-]+)?\]|[^:\s\[\],/@]+):\d{1,5}", re.I
)
KAFKA_SERVERS = "HOST:PORT[,HOST:PORT]"
KAFKA_ADDRESSES = frozenset({"bootstrap.servers", "metadata.broker.list"})


def at_home(folder: Path, file: str) -> Path:
    """Where a file of the configuration in `folder` is; `~` whose home nobody knows stands for itself."""
    try:
        return folder / Path(file).expanduser()
    except (RuntimeError, ValueError):
        return folder / file


def not_pem(path: Path) -> str:
    """Why this is no PEM file, "" where it is one."""
    try:
        return "" if b"-----BEGIN " in path.read_bytes() else "it holds no PEM"
    except OSError as error:
        return error.strerror or type(error).__name__
    except ValueError as error:  # a NUL in it
        return str(error)


def port_fits(server: str) -> bool:
    port = re.search(r":(\d+)$", server)
    return port is None or 0 < int(port[1]) < 65_536
