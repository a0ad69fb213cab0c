"""Fitted banks on disk, so that a problem's bank is fitted once, whoever asks for it first.

<folder>/first/             the partition's bank (see ``bank_format``)
<folder>/bank/              the last version, where that is another one
<folder>/labels.safetensors the prototype of every context
<folder>/fitted.json        choice of K, specialisation and scores

Nothing in it is personal: codes and sums per unit are made again of the contexts.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from persona.prototypes.bank_format import load_bank, save_bank
from persona.prototypes.fitting import Contexts, FittedBank
from persona.prototypes.partition import Partition
from persona.prototypes.selection import Candidate, Choice
from persona.prototypes.specialisation import Chosen, Specialised
from persona.prototypes.user_statistics import UserStatistics
from persona.storage import atomic_folder, load_tensors, read_json, save_tensors, write_json

FIRST, LAST, LABELS, HEADER = "first", "bank", "labels.safetensors", "fitted.json"


def save_fitted(folder: Path, fitted: FittedBank) -> None:
    """Write the folder, which appears at once or not at all; a bank of a stream is not kept, as it has no labels."""
    partition = fitted.partition
    if not isinstance(partition, Partition):
        return
    specialised = None if fitted.specialised is None else [asdict(chosen) for chosen in fitted.specialised.chosen]
    with atomic_folder(folder) as new:
        save_bank(new / FIRST, partition.bank)
        if fitted.bank.version != partition.bank.version:
            save_bank(new / LAST, fitted.bank)
        save_tensors(new / LABELS, {"labels": partition.labels}, {})
        header = {
            "inertia": partition.inertia,
            "converged": partition.converged,
            "choice": None if fitted.choice is None else fitted.choice.as_dict(),
            "specialised": specialised,
            "levels": fitted.levels,
        }
        write_json(new / HEADER, header)


def load_fitted(folder: Path, contexts: Contexts) -> FittedBank:
    """Read what ``save_fitted`` wrote of a bank of these ``contexts``.

    Raises:
        FormatError: a file is missing, damaged or of another release.
    """
    header = read_json(folder / HEADER)
    tensors, _ = load_tensors(folder / LABELS)
    labels, first = tensors["labels"], load_bank(folder / FIRST)
    statistics = UserStatistics.collect(contexts.codes, contexts.numbers, labels, len(first))
    partition = Partition(first, labels, header["inertia"], header["converged"], statistics)
    bank = load_bank(folder / LAST) if (folder / LAST).exists() else first
    choice, trained = header["choice"], header["specialised"]
    return FittedBank(
        bank,
        partition,
        None if choice is None else Choice(tuple(Candidate(**c) for c in choice["candidates"]), choice["k"]),
        None if trained is None else Specialised(bank, {}, tuple(Chosen(**chosen) for chosen in trained)),
        header["levels"],
        contexts,
    )
