"""Any interaction log -> clean events in order, and a report of what was understood."""

from recsys.data.log.reading import read_log
from recsys.data.log.report import InteractionLog, LogReport

__all__ = ["InteractionLog", "LogReport", "read_log"]
