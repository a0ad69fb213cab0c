"""The recommender as a service answers with it: ranked items, edits for devices, assignments."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from persona.answering import HOST, lacking
from persona.cloud import EditTables
from persona.errors import FormatError
from pipelines.serving.banks import bank_message, told_of_bank
from pipelines.serving.edits import Made, conflict, make_edits, serving_level
from pipelines.serving.errors import Refusal
from pipelines.serving.recsys import routes
from pipelines.serving.recsys.schemas import (
    ASSIGNMENT_EXAMPLES,
    EDIT_EXAMPLES,
    RECOMMENDATION_EXAMPLES,
    AssignmentAnswer,
    AssignmentRequest,
    EditAnswer,
    EditRequest,
    RecommendationAnswer,
    RecommendationRequest,
)
from pipelines.serving.servable import Operation, Reply, Service, Versions
from recsys.serving.index import EXACT, IndexConfig
from recsys.serving.recommender import NO_ITEM, Ask, Recommendation, Recommender

# Scores computed at once: what a batch takes in memory.
SCORES = 1 << 20
_FOUND = 20

OPERATIONS = (
    Operation(
        "/v1/recommendations",
        RecommendationRequest,
        RecommendationAnswer,
        "Recommend items",
        "History in, ranked items out. An empty or unknown history is answered by the host, and says so.",
        RECOMMENDATION_EXAMPLES,
    ),
    Operation(
        "/v1/edits",
        EditRequest,
        EditAnswer,
        "Make an edit for a device",
        "History in, edit out: as JSON, or with `Accept: application/octet-stream` as the message alone.",
        EDIT_EXAMPLES,
        binary=True,
        conflicts=True,
    ),
    Operation(
        "/v1/assignments",
        AssignmentRequest,
        AssignmentAnswer,
        "Assign devices to prototypes",
        "Histories in, their nearest prototypes out.",
        ASSIGNMENT_EXAMPLES,
    ),
)


class RecommenderTask:
    """Bundles of ``recsys``."""

    operations, body_bytes = OPERATIONS, 1 << 18

    def __init__(self, index: IndexConfig = EXACT) -> None:
        self.index = index

    def extend(self, api: FastAPI, service: Service) -> None:
        """The catalogue, MLflow's scoring protocol, the page."""
        routes.add(api, service)

    def load(self, folder: Path, name: str, version: str) -> RecommenderServable:
        """Read the compiled part of a bundle; neither torch nor TorchRec is loaded."""
        recommender = Recommender.load(folder, self.index)
        return RecommenderServable(recommender, name, version, bank_message(folder, recommender.bank))


class RecommenderServable:
    """One version of the recommender."""

    def __init__(self, recommender: Recommender, name: str, version: str, bank_message: bytes | None = None) -> None:
        self.recommender, self.bank_message = recommender, bank_message
        self.versions = Versions(name, version, recommender.host, recommender.bank)
        self._stamp = self.versions.as_dict()

    @property
    def rows(self) -> int:
        """How many rankings of the catalogue are computed at once."""
        return max(1, SCORES // len(self.recommender.item_ids))

    def answer(self, requests: Sequence[BaseModel]) -> list[Reply | Exception]:
        """All recommendations in one pass, all edits in another, every batch of assignments in one of its own."""
        replies: list[Reply | Exception | None] = [None] * len(requests)
        asks = [(i, r) for i, r in enumerate(requests) if isinstance(r, RecommendationRequest)]
        for (i, _), reply in zip(asks, self._recommend([request for _, request in asks]), strict=True):
            replies[i] = reply
        edits = [(i, r) for i, r in enumerate(requests) if isinstance(r, EditRequest)]
        for (i, _), made in zip(edits, self._edit([request for _, request in edits]), strict=True):
            replies[i] = made
        for i, request in enumerate(requests):
            if isinstance(request, AssignmentRequest):
                replies[i] = self._assign(request)
        return [
            reply if reply is not None else TypeError(type(r).__name__)
            for reply, r in zip(replies, requests, strict=True)
        ]

    def check(self) -> None:
        """Rank at the best level for a real item.

        Raises:
            FormatError: the answer is not what the bundle promises.
        """
        level = "host" if self.recommender.tables is None else "edit"
        known = self.recommender.item_ids[:3]
        answers = self.recommender.answer([Ask(known, k=1, level=level, seen=True), Ask([], k=1, level="host")])
        if any(not answer.items or not np.isfinite(answer.items[0].score) for answer in answers):
            raise FormatError("the scores of this bundle are not finite: release it again")
        if answers[0].level != level:
            raise FormatError(f"this bundle cannot answer at level {level} ({answers[0].fallback}): release it again")

    def prototypes(self) -> dict[str, Any] | None:
        """Members, norms and lineage of the bank."""
        return told_of_bank(self.recommender.tables, self._stamp)

    def search(self, query: str) -> list[dict[str, Any]]:
        """Items whose title or id holds a text, whatever the case."""
        wanted, found = query.strip().casefold(), []
        for i, item in enumerate(self.recommender.item_ids, start=1):
            title = self.recommender.vocabulary.title(i)
            if wanted in (title or item).casefold() or wanted == item.casefold():
                found.append({"id": item, "title": title})
                if len(found) == _FOUND:
                    break
        return found

    def examples(self, count: int = 5, length: int = 6) -> list[list[dict[str, Any]]]:
        """Made-up histories: each begins somewhere in the catalogue and goes on as the host expects."""
        ids = self.recommender.item_ids
        walks = [[ids[len(ids) * i // count]] for i in range(count)]
        for _ in range(length - 1):
            answers = self.recommender.recommend_many(walks, k=1, level="host")
            for walk, answer in zip(walks, answers, strict=True):
                walk += [item.item_id for item in answer.items]
        known = self.recommender.vocabulary
        return [[{"id": item, "title": known.title(known.index[item])} for item in walk] for walk in walks]

    def _recommend(self, requests: Sequence[RecommendationRequest]) -> list[Reply | Exception]:
        asks = [Ask(r.history, r.k, r.level, r.exclude, r.only, r.seen) for r in requests]
        return [Reply(self._recommendation(answer)) for answer in self.recommender.answer(asks)]

    def _recommendation(self, answer: Recommendation) -> dict[str, Any]:
        return {
            "items": [{"id": item.item_id, "score": item.score, "title": item.title} for item in answer.items],
            "level": answer.level,
            "fallback": answer.fallback,
            "prototype": answer.prototype,
            "distance": answer.distance,
            "edit_norm": answer.edit_norm,
            "unknown": answer.unknown,
            "unread": answer.unread,
            **self._stamp,
        }

    def _edit(self, requests: Sequence[EditRequest]) -> list[Reply | Exception]:
        tables = self.recommender.tables
        replies: list[Reply | Exception] = [Reply({})] * len(requests)
        able: list[tuple[int, list[int]]] = []
        for i, request in enumerate(requests):
            known = self.recommender.known_items(request.history)[0]
            reason = lacking(tables, serving_level(request.level)) or ("" if known else NO_ITEM)
            refused = conflict(self.versions, request.host, request.bank)
            if refused is not None:
                replies[i] = refused
            elif reason:
                replies[i] = self._edit_reply(Made(HOST, reason))
            else:
                able.append((i, known))
        if able and tables is not None:
            contexts = self.recommender.contexts([known for _, known in able])
            levels = [requests[i].level for i, _ in able]
            for (i, _), made in zip(able, make_edits(tables, contexts, levels, tables.full_message), strict=True):
                replies[i] = self._edit_reply(made)
        return replies

    def _edit_reply(self, made: Made) -> Reply:
        tables = self.recommender.tables
        whole = {} if tables is None or made.unbounded is None else _layers(tables, made.unbounded)
        content = {
            "level": made.level,
            "fallback": made.fallback,
            "prototype": made.prototype,
            "distances": made.distances,
            "edit_norm": made.norm,
            "coefficients": made.coefficients,
            "layers": whole,
            "message": base64.b64encode(made.message).decode(),
            "bytes": len(made.message),
            **self._stamp,
        }
        return Reply(content, made.message)

    def _assign(self, request: AssignmentRequest) -> Reply | Exception:
        tables = self.recommender.tables
        if tables is None or not tables.bank:
            return Refusal(404, "no_bank", "the model in use has no prototypes: release one with a prototype bank")
        known = [self.recommender.known_items(history)[0] for history in request.histories]
        assigned: list[dict[str, Any]] = [{"prototype": None, "distance": None, "known": len(items)} for items in known]
        rows = [i for i, items in enumerate(known) if items]
        if rows:
            contexts = self.recommender.contexts([known[i] for i in rows])
            prototypes, distances = tables.assign(contexts.codes)
            for row, i in enumerate(rows):
                j = int(prototypes[row])
                if np.isfinite(distances[row, j]):
                    assigned[i] |= {"prototype": j, "distance": float(distances[row, j])}
        return Reply({"assignments": assigned, **self._stamp})


def _layers(tables: EditTables, unbounded: np.ndarray) -> dict[str, dict[str, list[list[float]]]]:
    """A flat edit (P,) layer by layer."""
    return {
        layer.name: {
            "weight": unbounded[layer.start : layer.middle].reshape(layer.in_features, layer.out_features).tolist(),
            "bias": [unbounded[layer.middle : layer.stop].tolist()],
        }
        for layer in tables.layers
    }
