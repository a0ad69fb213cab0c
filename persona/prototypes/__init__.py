"""The prototype bank: partition, assignment, serving levels, refinement, versions.

    fit_bank -> PrototypeBank -> Assigner, Server          from training contexts to what devices apply
    specialise, choose_k                                   in the cloud, before release
    UserStatistics -> refine -> Lineage -> forget          after it

Codes (N, L, d) of a ``ParameterEditor`` are all that is read of a context; edits are compared by the ``HeadMetric``.
"""

from persona.prototypes.assign import Assigner, Assignment
from persona.prototypes.bank import MAX_PROTOTYPES, PrototypeBank, same_prototypes
from persona.prototypes.bank_format import load_bank, save_bank
from persona.prototypes.basis import EditBasis, fit_basis
from persona.prototypes.clustering import Clustering, ClusterSums, kmeans
from persona.prototypes.forgetting import Forgotten, forget
from persona.prototypes.lineage import Lineage, VersionRecord
from persona.prototypes.message import LEVELS, MAX_BYTES, MAX_COEFFICIENTS, message_bytes, receive
from persona.prototypes.metric import SPACES, HeadMetric, editor_digest
from persona.prototypes.partition import Partition, fit_bank
from persona.prototypes.plan import RefineConfig
from persona.prototypes.refinement import Refinement, refine
from persona.prototypes.selection import Candidate, Choice, adjusted_rand_index, choose_k
from persona.prototypes.serving import Server
from persona.prototypes.specialisation import Specialised, specialise
from persona.prototypes.user_statistics import UserStatistics, merge

__all__ = [
    "LEVELS",
    "MAX_BYTES",
    "MAX_COEFFICIENTS",
    "MAX_PROTOTYPES",
    "SPACES",
    "Assigner",
    "Assignment",
    "Candidate",
    "Choice",
    "ClusterSums",
    "Clustering",
    "EditBasis",
    "Forgotten",
    "HeadMetric",
    "Lineage",
    "Partition",
    "PrototypeBank",
    "RefineConfig",
    "Refinement",
    "Server",
    "Specialised",
    "UserStatistics",
    "VersionRecord",
    "adjusted_rand_index",
    "choose_k",
    "editor_digest",
    "fit_bank",
    "fit_basis",
    "forget",
    "kmeans",
    "load_bank",
    "merge",
    "message_bytes",
    "receive",
    "refine",
    "same_prototypes",
    "save_bank",
    "specialise",
]
