"""The service behind `persona serve`: bundles answer over HTTP, in small batches, and are exchanged while they do.

config.py     settings of a service
errors.py     what a request can end with besides its answer
servable.py   what a task has to bring: operations on batches of requests
recsys.py     the recommender as a servable; recsys_schemas.py what it takes and gives
batching.py   requests that come together are answered together
sources.py    where versions come from: a folder, or MLflow's registry
models.py     the version in use, and its exchange
gate.py       keys, sizes, capacity, counts: what every request passes first
metrics.py    Prometheus
scoring.py    MLflow's scoring protocol
app.py        the routes; page/ the page at `/`
server.py     the process: start, signals, drain
"""
