"""The hosts on TorchRec: one contract (``Host``), three kinds.

Example::

    host = make_host(HostConfig.preset("sasrec", "paper", n_items=1_682))
    state = host.encode(Context.from_lists([[3, 14, 15]], host.config.max_length))
    scores = host.score_catalogue(state, edit)
"""

from recsys.hosts.base import Host, State
from recsys.hosts.config import HostConfig
from recsys.hosts.din import DIN
from recsys.hosts.gru4rec import GRU4Rec
from recsys.hosts.sasrec import SASRec
from recsys.hosts.sequential import SequentialHost, UserState

HOSTS: dict[str, type[Host]] = {"din": DIN, "gru4rec": GRU4Rec, "sasrec": SASRec}


def make_host(config: HostConfig) -> Host:
    """The host of ``config``, initialised from torch's generator."""
    return HOSTS[config.kind](config)


__all__ = ["HOSTS", "Host", "HostConfig", "SequentialHost", "State", "UserState", "make_host"]
