"""Pipelines: the command line, MLflow entry points and tracking; thin steps over the other rooms."""
