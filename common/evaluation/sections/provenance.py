"""What a reader needs to find out where the page comes from, and to check it."""

from typing import Final

from common.evaluation import numerals
from common.evaluation.labels import label
from common.evaluation.sections.blocks import Block, Cell, Run, Section, Table, beside, section, term, words

LEVELS: Final = {
    "basic": "basic: no attacks",
    "quick": "quick: few attacks on few units",
    "standard": "standard",
    "deep": "deep: every attack, on as many units as there are",
}
"""What each level of an evaluation is."""

_TEXT: Final = frozenset({1, 2})


def provenance(run: Run) -> Section | None:
    """Digests, versions, sizes, and who may see what."""
    files = run.certificate.get("files") or {}
    hashes = tuple((Cell(str(name)), Cell(str(digest))) for name, digest in files.items())
    blocks: list[Block | None] = [
        Table("The run", words("fact", "value"), _facts(run), texts=_TEXT),
        Table("Files in the certificate", words("file", "SHA-256"), hashes, texts=_TEXT) if hashes else None,
    ]
    blocks.append(beside(_sizes(run), _access(run)))
    return section(run, "provenance", "Provenance", blocks, parts=("rows", "units"))


def level_said(run: Run) -> str:
    """How much was evaluated; empty where it is not known."""
    level = str(run.evaluation.get("level") or "")
    return LEVELS.get(level, level)


def seed_said(run: Run) -> str:
    """The seed of the evaluation; empty where it is not known."""
    seed = run.evaluation.get("seed")
    return "" if seed is None else str(seed)


def _facts(run: Run) -> tuple[tuple[Cell, ...], ...]:
    certificate, found = run.certificate, run.evaluation
    versions = {**(certificate.get("versions") or {}), **(found.get("versions") or {})}
    facts = {
        "study": run.digest,
        "run": certificate.get("run"),
        "method": found.get("description") or found.get("method"),
        "seed": seed_said(run),
        "level": level_said(run),
        "evaluation": found.get("schema"),
        "certificate": certificate.get("schema"),
        "relation": certificate.get("relation"),
        "noise trust": certificate.get("noise_trust"),
        "accountant": certificate.get("accountant"),
        **{label(name): numerals.count(number) for name, number in (found.get("columns") or {}).items() if number},
        **{f"version of {name}": version for name, version in versions.items()},
    }
    return tuple((Cell(name), Cell(str(value))) for name, value in facts.items() if value)


def _sizes(run: Run) -> Table | None:
    rows, units = run.part("rows"), run.part("units")
    cells = tuple(
        (Cell(label(name)), Cell(numerals.count(rows.get(name))), Cell(numerals.count(units.get(name))))
        for name in dict.fromkeys([*rows, *units])
    )
    return Table("Tables of the evaluation", words("table", "rows", "units"), cells) if cells else None


def _access(run: Run) -> Table | None:
    cells = tuple(
        (term(name), Cell(str(entry.get("visibility") or "")), Cell(str(entry.get("cost") or "")))
        for name, entry in run.part("access").items()
    )
    head = words("part", "seen by", "cost")
    return Table("Who may see what, and what it cost", head, cells, texts=_TEXT) if cells else None
