"""Training of hosts on many processes: the item table sharded by TorchRec, everything else replicated.

One process is the same code in a group of one. ``group`` joins the processes that torchrun started, ``tables`` shards the
table of a host, ``execution`` trains such a host under ``persona.training.loop.fit``, ``checkpoints`` keeps it.
"""
