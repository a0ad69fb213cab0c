"""The service behind `persona serve`: bundles answer over HTTP, in small batches, and are exchanged while they do.

Settings: ``config``. What a task brings: ``servable``, ``recsys`` (with ``recsys_schemas``, ``recsys_routes``, ``scoring``),
``vision``, and ``tasks``, which tells them apart. Versions: ``sources``, ``models``. Requests: ``gate``, ``bodies``,
``batching``, ``errors``, ``metrics``. Routes: ``app``, ``listing``, and the page in ``page/``. The process: ``server``.
"""
