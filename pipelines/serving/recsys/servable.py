"""The recommender as a service answers with it: ranked items, edits for devices, assignments."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from pydantic import BaseModel

from persona.cloud import EditTables
from persona.errors import FormatError
from pipelines.serving.banks import bank_message
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
from recsys.serving.answers import NO_BANK, NO_EDITOR, NO_ITEM, Answer, Ask, CompiledRecommender
from recsys.serving.index import EXACT, IndexConfig

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
        recommender = CompiledRecommender.load(folder, self.index)
        return RecommenderServable(recommender, name, version, bank_message(folder, recommender.bank))


class RecommenderServable:
    """One version of the recommender."""

    def __init__(
        self, recommender: CompiledRecommender, name: str, version: str, bank_message: bytes | None = None
    ) -> None:
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
        answers = self.recommender.recommend([Ask(known, k=1, level=level, seen=True), Ask([], k=1, level="host")])
        if any(not np.isfinite(answer.scores).all() or not answer.items for answer in answers):
            raise FormatError("the scores of this bundle are not finite: release it again")
        if answers[0].level != level:
            raise FormatError(f"this bundle cannot answer at level {level} ({answers[0].fallback}): release it again")

    def prototypes(self) -> dict[str, Any] | None:
        """Members, norms and lineage of the bank."""
        tables = self.recommender.tables
        if tables is None or not tables.bank:
            return None
        about = tables.about
        rows = zip(about["members"], about["norms"], about["origin"], strict=True)
        return self._stamp | {
            "version": tables.bank,
            "parent": about["parent"],
            "editor": about["editor"],
            "prototypes": [
                {"index": i, "members": members, "norm": norm, "origin": origin if origin >= 0 else None}
                for i, (members, norm, origin) in enumerate(rows)
            ],
            "directions": about["energy"],
            "metadata": about["metadata"],
        }

    def search(self, query: str) -> list[dict[str, Any]]:
        """Items whose title or id holds a text, whatever the case."""
        titles = self.recommender.titles
        wanted, found = query.strip().casefold(), []
        for i, item in enumerate(self.recommender.item_ids):
            title = titles[i] if titles else None
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
            answers = self.recommender.recommend([Ask(walk, k=1, level="host") for walk in walks])
            for walk, answer in zip(walks, answers, strict=True):
                walk += [ids[i - 1] for i in answer.items]
        return [[self._item(self.recommender.index[item]) for item in walk] for walk in walks]

    def _item(self, index: int) -> dict[str, Any]:
        titles = self.recommender.titles
        return {"id": self.recommender.item_ids[index - 1], "title": titles[index - 1] if titles else None}

    def _recommend(self, requests: Sequence[RecommendationRequest]) -> list[Reply | Exception]:
        asks = [Ask(r.history, r.k, r.level, r.exclude, r.only, r.seen) for r in requests]
        return [Reply(self._recommendation(answer)) for answer in self.recommender.recommend(asks)]

    def _recommendation(self, answer: Answer) -> dict[str, Any]:
        ids, titles = self.recommender.item_ids, self.recommender.titles
        pairs = zip(answer.items, answer.scores, strict=True)
        return {
            "items": [
                {"id": ids[i - 1], "score": score, "title": titles[i - 1] if titles else None} for i, score in pairs
            ],
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
        replies: list[Reply | Exception] = [Reply({})] * len(requests)
        able: list[tuple[int, EditRequest, list[int]]] = []
        for i, request in enumerate(requests):
            refused = self._conflict(request)
            known = self.recommender.known_items(request.history)[0]
            reason = "" if known else NO_ITEM
            if self.recommender.tables is None:
                reason = NO_EDITOR
            elif request.level != "full" and not self.recommender.bank:
                reason = NO_BANK
            if refused is not None:
                replies[i] = refused
            elif reason:
                replies[i] = self._edit_reply("host", reason, None, [], 0.0, b"")
            else:
                able.append((i, request, known))
        for (i, _, _), made in zip(able, self._messages([(request, known) for _, request, known in able]), strict=True):
            replies[i] = made
        return replies

    def _conflict(self, request: EditRequest) -> Refusal | None:
        """The device's versions, if it tells them, have to be the service's."""
        for name, own, held in (
            ("host", self.versions.host, request.host),
            ("prototype bank", self.versions.bank, request.bank),
        ):
            if held is not None and held != own:
                return Refusal(
                    409,
                    "other_version",
                    f"the device holds another {name} than {own[:12] or '(none)'}, which the service answers with: "
                    "update the device",
                )
        return None

    def _messages(self, wanted: Sequence[tuple[EditRequest, list[int]]]) -> list[Reply]:
        tables = self.recommender.tables
        if not wanted or tables is None:
            return []
        contexts = self.recommender.contexts([known for _, known in wanted])
        levels = ["edit" if request.level == "full" else request.level for request, _ in wanted]
        chosen = tables.choose(contexts.codes, contexts.unbounded, levels)
        replies = []
        for row, level in enumerate(chosen.levels):
            nearest = None if chosen.prototypes is None else int(chosen.prototypes[row])
            distances = [] if chosen.distances is None else _finite(chosen.distances[row].tolist())
            norm, extra, message = float(chosen.norms[row]), {}, b""
            if level == "prototype" and nearest is not None:
                message = bytes([nearest])
            elif level == "basis" and chosen.prototypes is not None and nearest is not None:
                row_codes = contexts.codes[row : row + 1]
                coefficients = tables.coefficients(row_codes, chosen.prototypes[row : row + 1])[0]
                message = tables.remainder_message(nearest, coefficients)
                extra = {"coefficients": coefficients.tolist()}
            elif level == "edit":
                message = tables.full_message(contexts.unbounded[row])
                extra = {"layers": _layers(tables, contexts.unbounded[row])}
            named = "full" if level == "edit" else level
            replies.append(self._edit_reply(named, chosen.reasons[row], nearest, distances, norm, message, **extra))
        return replies

    def _edit_reply(
        self,
        level: str,
        fallback: str,
        prototype: int | None,
        distances: list[float],
        norm: float,
        message: bytes,
        **extra: Any,
    ) -> Reply:
        content = {
            "level": level,
            "fallback": fallback,
            "prototype": prototype,
            "distances": distances,
            "edit_norm": norm,
            "coefficients": [],
            "layers": {},
            **extra,
            "message": base64.b64encode(message).decode(),
            "bytes": len(message),
            **self._stamp,
        }
        return Reply(content, message)

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


def _finite(values: list[float]) -> list[float]:
    """Values for JSON: none, if one of them is no number."""
    return values if np.isfinite(values).all() else []


def _layers(tables: EditTables, unbounded: np.ndarray) -> dict[str, dict[str, list[list[float]]]]:
    """A flat edit (P,) layer by layer."""
    return {
        layer.name: {
            "weight": unbounded[layer.start : layer.middle].reshape(layer.in_features, layer.out_features).tolist(),
            "bias": [unbounded[layer.middle : layer.stop].tolist()],
        }
        for layer in tables.layers
    }
