"""Who descends from whom: the versions of a prototype bank in the registry, what moved in each, and who was champion when.

The chain is read from the banks themselves, which name their parents, so that it holds on any machine that reaches the
registry. A model without banks, such as the bundles, is shown as a plain row of versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from rich.text import Text
from rich.tree import Tree

from persona.prototypes import PrototypeBank
from pipelines import tracking
from pipelines.versions import comparing, pages, promotion
from pipelines.versions import names as versions
from pipelines.versions.names import CHAMPION, Version

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE = "lineage.html"
MODEL_TAG = "lineage"
# Tags in which whoever registers a bank says what its refinement did.
MOVED = "moved_users"


@dataclass(frozen=True)
class Reign:
    """A time as champion: UTC, ISO 8601; ``until`` is None while it lasts."""

    since: str
    until: str | None


@dataclass
class Node:
    """A version in its lineage.

    Attributes:
        number: of the version.
        bank: version of the bank, empty without one.
        parent: number of the version it was made from; None for a first one, or where that is not registered.
        kind: ``fit``, ``specialise``, ``refine``, or empty.
        created: UTC, ISO 8601.
        k: prototypes; 0 without a bank.
        members: contexts that made it.
        movement: largest movement per layer, as a share of the layer's own weights; empty without a parent.
        moved: users or devices that changed prototype; None if unknown.
        aliases: that point to it.
        verdict: of its last comparison.
        reigns: its times as champion.
        lane: column in the drawing: a first child goes on in its parent's, and what has no bank stands in the first.
    """

    number: int
    bank: str
    parent: int | None
    kind: str
    created: str
    k: int
    members: float
    movement: dict[str, float]
    moved: int | None
    aliases: tuple[str, ...]
    verdict: str
    reigns: list[Reign] = field(default_factory=list)
    lane: int = 0

    def facts(self) -> str:
        """What there is to say in one line."""
        parts = [self.kind or "version", minute(self.created)]
        if self.k:
            parts.append(f"{self.k} prototype{'s' * (self.k != 1)}")
            parts.append(f"{self.members:,.0f} contexts")
        if self.moved is not None:
            parts.append(f"{self.moved:,} moved")
        if self.movement:
            parts.append(
                "movement " + ", ".join(f"{layer} {100 * share:.2f} %" for layer, share in self.movement.items())
            )
        return " · ".join(parts)

    def crowned(self) -> str:
        """When it was champion, in words; empty if never."""
        return "; ".join(
            f"champion since {minute(reign.since)}"
            if reign.until is None
            else f"champion {minute(reign.since)} to {minute(reign.until)}"
            for reign in self.reigns
        )


def minute(time: str) -> str:
    """A time for people; what is no time stays as it is."""
    return time[:16].replace("T", " ") if time[:1].isdigit() else time


def chain(client: MlflowClient, model: str) -> list[Node]:
    """Every version of ``model``, oldest first.

    Raises:
        ConfigError: there is no such model.
        FormatError: a bank in it is damaged.
    """
    versions.resolve(client, model)
    found = versions.all_of(client, model)
    banks = {version.number: comparing.bank_of(version) for version in found}
    numbers = {bank.version: number for number, bank in banks.items() if bank is not None}
    nodes = [_node(version, banks, numbers) for version in found]
    events, alias = promotion.history(client, model), versions.aliases_of(client, model).get(CHAMPION)
    by_number = {node.number: node for node in nodes}
    for number, since, until in promotion.reigns(events, alias, _first(by_number, events, alias)):
        if number in by_number:
            by_number[number].reigns.append(Reign(since, until))
    _lanes(nodes)
    return nodes


def log(client: MlflowClient, model: str, nodes: Sequence[Node]) -> str:
    """Keep the page and a table in MLflow, in one run a model, which every call brings up to date.

    Returns:
        The id of the run.
    """
    experiment = tracking.connect(model).experiment_id
    found = client.search_runs([experiment], f"tags.{MODEL_TAG} = '{model}'", max_results=1)
    run_id = found[0].info.run_id if found else None
    with tracking.run(f"lineage of {model}", run_id=run_id, tags={MODEL_TAG: model}) as active:
        tracking.log_table([_row(node) for node in nodes], "tables/lineage.json")
        client.log_text(active.info.run_id, page(model, nodes), PAGE)
    return str(active.info.run_id)


def page(model: str, nodes: Sequence[Node]) -> str:
    """The HTML page: a drawing and a table."""
    rows = list(reversed(nodes))
    places = {node.number: (node.lane, row) for row, node in enumerate(rows)}
    edges = [(places[node.parent], places[node.number]) for node in rows if node.parent in places]
    lanes = 1 + max((node.lane for node in nodes), default=0)
    return pages.render("lineage.html", model=model, nodes=rows, places=places, edges=edges, lanes=lanes)


def tree(model: str, nodes: Sequence[Node]) -> Tree:
    """The lineage for a terminal."""
    root = Tree(Text(model, "bold"))
    grown: dict[int | None, Tree] = {None: root}
    for node in nodes:
        aliases = "".join(f" @{alias}" for alias in node.aliases)
        label = Text.assemble(
            (f"{node.number}{aliases}", "bold" if CHAMPION in node.aliases else ""), "  ", node.facts()
        )
        for line in filter(None, (node.crowned(), node.verdict)):
            label.append(f"\n{line}", "dim")
        grown[node.number] = grown.get(node.parent, root).add(label)
    return root


def as_dicts(nodes: Sequence[Node]) -> list[dict[str, Any]]:
    """Plain values for JSON."""
    return [asdict(node) for node in nodes]


def _node(version: Version, banks: Mapping[int, PrototypeBank | None], numbers: Mapping[str, int]) -> Node:
    bank = banks[version.number]
    parent = numbers.get(bank.parent) if bank is not None else None
    before = banks[parent] if parent is not None else None
    moved = version.tags.get(MOVED, "")
    return Node(
        number=version.number,
        bank="" if bank is None else bank.version,
        parent=parent,
        kind="" if bank is None else str(bank.metadata.get("kind", "")),
        created=version.created.strftime("%Y-%m-%dT%H:%M:%SZ"),
        k=0 if bank is None else len(bank),
        members=0.0 if bank is None else float(bank.members.sum()),
        movement={} if before is None or bank is None else comparing.largest_movement(before, bank),
        moved=int(moved) if moved.isdigit() else None,
        aliases=version.aliases,
        verdict=version.tags.get("compared.verdict", ""),
    )


def _first(nodes: Mapping[int, Node], events: Sequence[promotion.Event], alias: int | None) -> str:
    """Since when a champion without an event is one: the time it was made."""
    number = events[0].before if events else alias
    return nodes[number].created if number is not None and number in nodes else "unknown"


def _lanes(nodes: Sequence[Node]) -> None:
    """Give every version its column."""
    continued: set[int] = set()
    by_number = {node.number: node for node in nodes}
    lanes = 0
    for node in nodes:
        if not node.bank:
            continue
        if node.parent is not None and node.parent not in continued:
            node.lane = by_number[node.parent].lane
            continued.add(node.parent)
        else:
            node.lane, lanes = lanes, lanes + 1


def _row(node: Node) -> dict[str, Any]:
    shown = {
        "version": node.number,
        "parent": node.parent or "-",
        "kind": node.kind,
        "created": node.created,
        "prototypes": node.k,
    }
    moved = {"members": node.members, "moved": node.moved if node.moved is not None else "-"}
    movement = {f"movement {layer}": share for layer, share in node.movement.items()}
    return {**shown, **moved, **movement, "champion": node.crowned(), "verdict": node.verdict}
