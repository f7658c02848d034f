"""The Kafka adapter: a topic as a Log, a group as an Assignment, a compacted topic as a Board, and the doctor.

The only folder that imports the Kafka client.
"""

from .board import KafkaBoard
from .doctor import KafkaInspector
from .group import KafkaGroup
from .log import KafkaLog
from .settings import KafkaSettings

__all__ = ["KafkaBoard", "KafkaGroup", "KafkaInspector", "KafkaLog", "KafkaSettings"]
