"""The steps of both pipelines: typed config in, typed result out, everything logged to MLflow."""
