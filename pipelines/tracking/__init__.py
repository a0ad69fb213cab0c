"""MLflow: the store, runs, registered models and figures. What steps log with is called ``tracking.<name>``."""

from pipelines.tracking.runs import (
    COMMAND_TAG,
    FOLDER_TAG,
    PROCESS_TAG,
    client,
    command_line,
    commit_tags,
    connect,
    note_failure,
    process_name,
    run,
)
from pipelines.tracking.values import (
    log_dataset,
    log_epochs,
    log_figure,
    log_json,
    log_metrics_batch,
    log_params,
    log_table,
)

__all__ = [
    "COMMAND_TAG",
    "FOLDER_TAG",
    "PROCESS_TAG",
    "client",
    "command_line",
    "commit_tags",
    "connect",
    "log_dataset",
    "log_epochs",
    "log_figure",
    "log_json",
    "log_metrics_batch",
    "log_params",
    "log_table",
    "note_failure",
    "process_name",
    "run",
]
