"""The prototype bank: partition, assignment, serving levels, refinement, versions.

    fit_bank -> PrototypeBank -> Assigner, Server          from training contexts to what devices apply
    CodeSample -> fit_bank_streamed                        the same from a stream, over many workers
    fit_editor_bank: choose_k, fit_bank, specialise        in the cloud, before release
    UserStatistics -> refine -> Lineage -> forget          after it; save_statistics, merge_statistics between workers

Codes (N, L, d) of a ``ParameterEditor`` are all that is read of a context; edits are compared by the ``HeadMetric``.
"""

from persona.prototypes.assign import Assigner, Assignment
from persona.prototypes.bank import MAX_PROTOTYPES, PrototypeBank, same_prototypes
from persona.prototypes.bank_format import load_bank, save_bank
from persona.prototypes.basis import EditBasis, fit_basis
from persona.prototypes.clustering import Clustering, ClusterSums, kmeans
from persona.prototypes.fitting import BankConfig, Contexts, FittedBank, Notify, fit_editor_bank
from persona.prototypes.forgetting import Forgotten, forget
from persona.prototypes.lineage import Lineage, VersionRecord
from persona.prototypes.message import receive
from persona.prototypes.metric import SPACES, HeadMetric, editor_digest
from persona.prototypes.partition import Partition, fit_bank, fit_distinct
from persona.prototypes.plan import RefineConfig
from persona.prototypes.refinement import Refinement, refine
from persona.prototypes.selection import Candidate, Choice, adjusted_rand_index, choose_k
from persona.prototypes.serving import Server
from persona.prototypes.specialisation import Specialised, specialise
from persona.prototypes.statistics_format import (
    forget_user,
    is_shard,
    load_statistics,
    merge_statistics,
    save_statistics,
)
from persona.prototypes.streaming import CodeBlock, CodeSample, StreamedPartition, fit_bank_streamed, merge_samples
from persona.prototypes.user_statistics import StatisticsFold, UserStatistics, merge

__all__ = [
    "MAX_PROTOTYPES",
    "SPACES",
    "Assigner",
    "Assignment",
    "BankConfig",
    "Candidate",
    "Choice",
    "ClusterSums",
    "Clustering",
    "CodeBlock",
    "CodeSample",
    "Contexts",
    "EditBasis",
    "FittedBank",
    "Forgotten",
    "HeadMetric",
    "Lineage",
    "Notify",
    "Partition",
    "PrototypeBank",
    "RefineConfig",
    "Refinement",
    "Server",
    "Specialised",
    "StatisticsFold",
    "StreamedPartition",
    "UserStatistics",
    "VersionRecord",
    "adjusted_rand_index",
    "choose_k",
    "editor_digest",
    "fit_bank",
    "fit_bank_streamed",
    "fit_basis",
    "fit_distinct",
    "fit_editor_bank",
    "forget",
    "forget_user",
    "is_shard",
    "kmeans",
    "load_bank",
    "load_statistics",
    "merge",
    "merge_samples",
    "merge_statistics",
    "receive",
    "refine",
    "same_prototypes",
    "save_bank",
    "save_statistics",
    "specialise",
]
