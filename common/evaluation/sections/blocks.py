"""What a section of the page is made of, and what it is made from. The template knows how each kind of block looks."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Literal

from markupsafe import Markup

from common.evaluation import numerals, verdict
from common.evaluation.charts import Mark
from common.evaluation.figures import Figure
from common.evaluation.labels import heading, label

_NARROW: Final = 3
"""Columns up to which an interval has room beside its value."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table.

    text: in its first line.
    below: a second line: an interval, a reason, who attacks.
    tone: whether it is to be noticed.
    term: a name that the definitions may explain.
    """

    text: str
    below: str = ""
    tone: Literal["", "strong", "muted", "alarm"] = ""
    term: str = ""


NOTHING: Final = Cell(numerals.NOTHING, tone="muted")


@dataclass(frozen=True)
class Table:
    """A table.

    head: of each column.
    rows: the first cell of each is its name.
    texts: columns beside the first that hold words.
    note: a line below it.
    """

    kind: ClassVar[str] = "table"

    caption: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: frozenset[int] = frozenset()
    note: str = ""

    @property
    def is_tight(self) -> bool:
        """Whether intervals go below their values."""
        return len(self.head) > _NARROW


@dataclass(frozen=True)
class Chart:
    """A drawing with its caption."""

    kind: ClassVar[str] = "chart"

    caption: str
    svg: Markup


@dataclass(frozen=True)
class Prose:
    """One paragraph."""

    kind: ClassVar[str] = "prose"

    text: str


@dataclass(frozen=True)
class Listing:
    """Sentences, one an item."""

    kind: ClassVar[str] = "listing"

    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Beside:
    """Blocks that stand side by side where there is room."""

    kind: ClassVar[str] = "beside"

    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Stack:
    """Blocks one below the other, as one of those that stand side by side."""

    kind: ClassVar[str] = "stack"

    blocks: tuple["Block", ...]


@dataclass(frozen=True)
class Folded:
    """Blocks for those who look closer."""

    kind: ClassVar[str] = "folded"

    title: str
    blocks: tuple["Block", ...]


Block = Table | Chart | Prose | Listing | Beside | Stack | Folded


@dataclass(frozen=True)
class Section:
    """One section of the page.

    name: of its anchor.
    title: of the section.
    blocks: in reading order.
    note: who may see it and what it cost.
    withheld: that something of it stays at the site; empty where nothing does.
    """

    name: str
    title: str
    blocks: tuple[Block, ...] = ()
    note: str = ""
    withheld: str = ""


@dataclass(frozen=True)
class Run:
    """What a page is made of: the evaluation, the certificate and the lines of rounds.jsonl.

    hidden: parts of the evaluation that were cut out or cut short.
    """

    evaluation: Mapping[str, Any]
    certificate: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]]
    hidden: frozenset[str] = field(default_factory=frozenset)

    def part(self, name: str) -> Mapping[str, Any]:
        """A part of the evaluation; empty where it has none."""
        return self.evaluation.get(name) or {}

    @cached_property
    def guarantee(self) -> dict[str, Any] | None:
        """With its unit; None where nothing is promised."""
        return verdict.guarantee_of(self.evaluation, self.certificate)

    @property
    def unit(self) -> str:
        """What is protected."""
        stated = self.evaluation.get("guarantee") or {}
        return str(stated.get("unit") or self.evaluation.get("unit") or self.certificate.get("unit") or "unit")

    @property
    def digest(self) -> str:
        """Of the study; empty where it is not known."""
        return str(self.evaluation.get("study") or (self.certificate.get("study") or {}).get("digest") or "")


def section(
    run: Run, name: str, title: str, blocks: Iterable[Block | None], *, parts: Sequence[str] = ()
) -> Section | None:
    """A section of what there is; None where there is nothing, and nothing was cut out.

    Args:
        run: of the page.
        name: see `Section`.
        title: see `Section`.
        blocks: None among them is left out.
        parts: of the evaluation that the section shows.
    """
    found = tuple(block for block in blocks if block is not None)
    is_cut = not run.hidden.isdisjoint(parts)
    if not found and not is_cut:
        return None
    notes = {part: _access(run.part("access")[part]) for part in parts if part in run.part("access")}
    if len(set(notes.values())) > 1:
        notes = {part: f"{heading(part)}: {note}" for part, note in notes.items()}
    note = " ".join(dict.fromkeys(notes.values())) if found and not is_cut else ""
    note = note[:1].upper() + note[1:]
    withheld = ("Some of this stays at the site." if found else "This stays at the site.") if is_cut else ""
    return Section(name, title, found, note, withheld)


def _access(entry: Mapping[str, Any]) -> str:
    """Who may see a part, and what it cost."""
    seen = str(entry.get("visibility", ""))
    who = {
        "public": "may be public",
        "site": "for the eyes of the site alone",
        "simulation": "known because these rows are simulated or public",
    }.get(seen, seen)
    cost = str(entry.get("cost") or "").rstrip(".")
    return f"{who}; cost: {cost}." if cost else f"{who}."


def beside(*columns: Block | None) -> Block | None:
    """What there is of some blocks, side by side; None of none."""
    found = tuple(column for column in columns if column is not None)
    return Beside(found) if len(found) > 1 else found[0] if found else None


def stack(*blocks: Block | None) -> Block | None:
    """What there is of some blocks, one below the other; None of none."""
    found = tuple(block for block in blocks if block is not None)
    return Stack(found) if len(found) > 1 else found[0] if found else None


def words(*names: str) -> tuple[Cell, ...]:
    """Names of the evaluation, or plain words, as the head of a table."""
    return tuple(map(term, names))


def term(name: str, below: str = "", tone: Literal["", "strong", "muted", "alarm"] = "", *, text: str = "") -> Cell:
    """A name of the evaluation as words, or as `text`; what the definitions say of it is a link away."""
    return Cell(text or label(name), below, tone, name)


def figure_cell(figure: Figure, *, as_percent: bool = False) -> Cell:
    """A figure with its interval, or why there is none."""
    if figure.value is None:
        return Cell(numerals.NOTHING, figure.reason or "not measured", "muted")
    return Cell(*numerals.figure(figure.value, figure.low, figure.high, as_percent=as_percent))


def attack_cell(figure: Figure, *, as_percent: bool = False) -> Cell:
    """A figure of an attack; marked where its interval lies wholly above chance, or above the ceiling."""
    cell = figure_cell(figure, as_percent=as_percent)
    if figure.value is None or figure.low is None:
        return cell
    if figure.ceiling is not None and figure.low > figure.ceiling:
        return Cell(cell.text, f"{cell.below} above the ceiling", "alarm")
    if figure.chance is not None and figure.low > figure.chance:
        return Cell(cell.text, cell.below, "strong")
    return cell


def mark_of(figure: Figure) -> Mark | None:
    """A figure in a chart; None without a value."""
    return None if figure.value is None else Mark(figure.value, figure.low, figure.high)


def entry_cell(table: Mapping[str, Any], name: str) -> Cell | None:
    """What a table of figures says of a name: a number, a figure, or why there is none; None of anything else."""
    value = table.get(name)
    if isinstance(value, Mapping):
        return figure_cell(verdict.figure_of(value)) if verdict.is_figure(value) else None
    if value is None:
        return Cell(numerals.NOTHING, reason_of(table, name), "muted")
    if isinstance(value, int):
        return Cell(numerals.count(value)) if numerals.is_number(value) else None
    return Cell(numerals.number(value)) if numerals.is_number(value) else None


def reason_of(table: Mapping[str, Any], name: str) -> str:
    """Why a table of figures has none of a name: its own reason, or of those that begin with a name the one for it.

    >>> reason_of({"reason": "correlation: no two vary; rare: none is"}, "correlation_mean")
    'no two vary'
    """
    own = (table.get("reasons") or {}).get(name)
    if own:
        return str(own)
    reasons = str(table.get("reason") or "")
    for one in reasons.split("; "):
        of, _, why = one.partition(": ")
        if why and name.startswith(of):
            return why
    return reasons


def remaining(data: Mapping[str, Any], caption: str, *, part: str = "") -> Table | None:
    """All figures, numbers and words in nested dicts, by the path to them; None of nothing.

    Args:
        data: whatever it holds.
        caption: of the table.
        part: before the path, in the definitions: one name may mean something else in another part.
    """
    rows = tuple(
        (Cell(", ".join(map(label, path)), term=".".join([*([part] if part else []), *path])), cell)
        for path, cell in _cells(data)
    )
    return Table(caption, words("figure", "value"), rows) if rows else None


def _cells(data: object, path: tuple[str, ...] = ()) -> Iterable[tuple[tuple[str, ...], Cell]]:
    if isinstance(data, Mapping) and verdict.is_figure(data):
        yield path, figure_cell(verdict.figure_of(data))
    elif isinstance(data, Mapping):
        for key, inner in data.items():
            yield from _cells(inner, (*path, str(key)))
    elif isinstance(data, bool):
        yield path, Cell("yes" if data else "no")
    elif isinstance(data, int):
        yield path, Cell(numerals.count(data))
    elif isinstance(data, float):
        yield path, Cell(numerals.number(data))
    elif isinstance(data, str):
        yield path, Cell(data)
