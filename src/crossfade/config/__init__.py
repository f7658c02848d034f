"""One `crossfade.yaml`: read, checked, and given out as frozen structs."""

from __future__ import annotations

from .reader import load
from .secret import Secret
from .shape import (
    Beginning,
    Broker,
    Config,
    KafkaBroker,
    KafkaSide,
    MappingChoice,
    PropertyMistake,
    RedisBroker,
    RedisSide,
    RouteSettings,
    Side,
    StreamSettings,
    Tls,
)
from .tree import ConfigError, Problem

__all__ = [
    "Beginning",
    "Broker",
    "Config",
    "ConfigError",
    "KafkaBroker",
    "KafkaSide",
    "MappingChoice",
    "Problem",
    "PropertyMistake",
    "RedisBroker",
    "RedisSide",
    "RouteSettings",
    "Secret",
    "Side",
    "StreamSettings",
    "Tls",
    "load",
]
