"""The study file: what all parties agree on before anyone looks at a row.

One YAML file, read once, frozen, hashed into every message and into the certificate. A key that is not known is refused
with the nearest name that is.
"""

import difflib
import functools
import hashlib
import json
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from common.data.automaton import check_constraints
from common.data.constraints import CONSTRAINT_KINDS, Constraint, allowed_moves, check_sums, directions, totals
from common.data.schema import (
    COLUMN_TYPES,
    CategoricalColumn,
    Column,
    FileLayout,
    IntegerColumn,
    Number,
    Section,
    Text,
    Whole,
)
from common.data.windows import Windows
from common.errors import ExitCode, StudyError
from common.privacy.accountants import Accountant, GdpAccountant, RdpAccountant, default_order
from common.privacy.budget import mu_of

STUDY_SCHEMA: Final = "privshare.study/1"
MAX_LABELS = 8
_UNATTAINABLE = "epsilon_unattainable"
STEPS: Final = "(steps)"
"""Name of the column that a study with events has beside its own: how many steps a unit has."""
_SHOWN = 80
"""Characters of a wrong value that an error repeats."""


class Unit(Section):
    """Who is protected, and how much of one unit is used."""

    # A word for reports: patient, account holder, person.
    name: Text = "record"
    # The column that tells units apart; without it every record is a unit of its own.
    key: Text | None = None
    # A unit weighs 1 however many of its records are used, so a larger number costs no privacy.
    max_records: Annotated[Whole, Field(ge=1, le=16)] = 1
    # What to do with a unit that has more records: refuse the table, or keep a keyed random choice.
    surplus: Literal["refuse", "drop"] = "refuse"


class Label(Section):
    """The column that conditions every table and the generator; `positive` is the class that is predicted."""

    column: Text
    positive: Text


def _fraction(value: float) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{value}: expected between 0 and 1, both excluded")
    return value


Fraction = Annotated[Number, AfterValidator(_fraction)]


class Privacy(Section):
    """The guarantee per unit and site: add or remove one unit."""

    # Ten thousand is no protection at all; it shows what the noise costs.
    epsilon: Annotated[Number, Field(gt=0, le=10_000)]
    delta: Annotated[Number, Field(gt=0, lt=1)]
    # Share of the budget for the one-way tables, from which bins are made; the rest is the discriminators'.
    # Fine one-way tables carry what pairs of coarse bins cannot; from 0.2 to 0.5 the outcome hardly differs.
    one_way_share: Fraction = 0.35
    # Share of each site's units, chosen by keyed hash, that never trains and monitors quality on its own budget.
    holdout: Annotated[Number, Field(ge=0, lt=0.5)] = 0.05
    # What spends are counted in. gdp: exact for releases over all units. rdp: Rényi DP at one order, which follows from
    # epsilon and delta; for a critic that samples units, at the price of about an eighth of all other noise.
    accountant: Literal["gdp", "rdp"] = "gdp"
    # How sites' noised answers are added up. local: by the coordinator, which sees each. masked: under masks that
    # cancel in the sum, so that it sees the sum alone. Either way each site draws all the noise that its claim needs.
    noise_trust: Literal["local", "masked"] = "local"


Weight = Annotated[Number, Field(ge=0, le=1000)]


class Discriminators(Section):
    """How the discriminators share what the one-way tables leave of the budget, by weight; 0 switches one off.

    Between those with tables a weight counts times the root of their number; see `common.wire.agenda.planned_tables`.
    """

    # Tables of pairs of columns.
    statistical: Weight = 1.0
    # In a study with windows: tables of channels with columns, with each other, and over time.
    temporal: Weight = 1.0
    # Mean embeddings of frozen features, by label: combinations of several columns that pairs cannot show.
    semantic: Weight = 0.0
    # Networks that learn from noised gradients; below epsilon 3 they rarely find a signal.
    neural: Weight = 0.0
    # shared: sites' noised answers are summed. local: they stay at the site, and only generators meet.
    scope: Literal["shared", "local"] = "shared"

    def shares(self, *, windows: bool) -> dict[str, float]:
        """Share of what is left for each discriminator that is on; they sum to 1 where one is."""
        weights = {
            "statistical": self.statistical,
            "temporal": self.temporal if windows else 0.0,
            "semantic": self.semantic,
            "neural": self.neural,
        }
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items() if weight > 0}


class Critic(Section):
    """The neural discriminator, one trunk with a semantic and a temporal head; used where its weight is not 0."""

    # semantic: whether a unit goes with its label; temporal: whether its window, if the study has windows, looks real.
    heads: Literal["both", "semantic", "temporal"] = "both"
    # Of embeddings and hidden layers: below epsilon 3 more parameters drown in more noise.
    width: Annotated[Whole, Field(ge=4, le=128)] = 16
    # Noised gradients that each measurement asks for; each has an equal share of the budget.
    steps: Annotated[Whole, Field(ge=1, le=1000)] = 10
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 0.02
    # Chance of each unit to take part in a gradient, drawn anew each time; below 1 for tables too large to pass whole.
    sampling: Annotated[Number, Field(ge=1e-6, le=1)] = 1.0
    # Largest norm of one unit's gradient.
    clip_norm: Annotated[Number, Field(ge=1e-3, le=1e3)] = 1.0
    # Weight of a head in the generator's loss when the gate is wide open.
    strength: Annotated[Number, Field(ge=0, le=1000)] = 1.0


class Noise(Section):
    """How the discriminators' budget is spread over the run; see server/noise_controller.py."""

    # fixed: equal noise. stage: high early, low late. pid: the stage prior, moved by the quality so far.
    schedule: Literal["fixed", "stage", "pid"] = "pid"
    # Times that the discriminators measure; a later one measures what the generator has not yet learned.
    rounds: Annotated[Whole, Field(ge=1, le=64)] = 3
    # How far the stage prior lowers the noise from first to last: by a factor exp(-kappa / 2).
    kappa: Annotated[Number, Field(ge=0, le=1)] = 1.0
    # lead: quality above plan lowers the noise; lag: raises it.
    direction: Literal["lead", "lag"] = "lead"
    # Share of the tables, the worst fitted, that are measured again after the first time.
    again: Annotated[Number, Field(gt=0, le=1)] = 1.0
    # No measurement spends a larger share of the discriminators' budget: a floor of the noise.
    max_share: Annotated[Number, Field(gt=0, le=1)] = 1.0
    # Combined quality that the plan tends to, and the validation AUC that counts as quality 1; public expectations.
    goal: Fraction = 0.9
    reference_auc: Annotated[Number, Field(gt=0.5, le=1)] = 0.9


class Rounds(Section):
    """How the generator is trained; all of it is post-processing and costs no privacy."""

    count: Annotated[Whole, Field(ge=1, le=10_000)] = 10
    # Sites that train in one round, taken in turn; the work of a round does not grow with the federation.
    trainers: Annotated[Whole, Field(ge=1)] = 4
    # In a round, of each of those sites and then of the coordinator; all of a site where discriminators stay there.
    local_steps: Annotated[Whole, Field(ge=0, le=10_000)] = 20
    refine_steps: Annotated[Whole, Field(ge=0, le=10_000)] = 80
    # Sites that must answer; without it, all. One that is missing in a release is taken to be like the others.
    quorum: Annotated[Whole, Field(ge=1)] | None = None
    # How the generators of a round's sites become one. median: of each parameter, which fewer than half of them cannot
    # move out of the range of the others; among honest sites it is no worse (docs/results/bad-peers.md). Of fewer than
    # three it is the mean.
    aggregation: Literal["mean", "median"] = "median"
    # No site has more units than this, as everybody knows: one that states more is not believed. There is no default,
    # since it depends on the sites and no rows may say it; `privshare check` says what is missing.
    site_units: Annotated[Whole, Field(ge=1)] | None = None


class Model(Section):
    """The generator's size and its optimiser."""

    # A narrow latent cannot fit the noise of single cells. By default 16, and 32 with windows: 64 did worse on every
    # table tried.
    latent: Annotated[Whole, Field(ge=1, le=1024)] | None = None
    width: Annotated[Whole, Field(ge=8, le=4096)] = 256
    blocks: Annotated[Whole, Field(ge=1, le=8)] = 2
    # Latents a class and step; even, since the loss compares two halves.
    batch: Annotated[Whole, Field(ge=8, le=65536, multiple_of=2)] = 512
    learning_rate: Annotated[Number, Field(gt=0, le=1)] = 5e-3
    # How a latent becomes features: plain blocks, or self-attention between tokens.
    body: Literal["mlp", "attention"] = "mlp"
    # At most this many bins in a numeric column.
    max_bins: Annotated[Whole, Field(ge=2, le=256)] = 32
    # At most this many in a numeric channel of windows; the cost of a step grows with its square.
    channel_bins: Annotated[Whole, Field(ge=2, le=64)] = 8
    # Hidden states of the model of event streams.
    states: Annotated[Whole, Field(ge=2, le=256)] = 32


class Release(Section):
    """What is published."""

    # Without it, as many rows as the noised count of units.
    rows: Annotated[Whole, Field(ge=1, le=10_000_000)] | None = None


class Gates(Section):
    """What must hold before anything is published; None leaves a gate out."""

    # Known to the coordinator. Of the AUC that held-out units were asked for, less two standard errors.
    monitor_auc: Annotated[Number, Field(ge=0.5, le=1)] | None = None
    # Of any discriminator, in noise variances a cell; 1 is as near as the truth itself.
    misfit: Annotated[Number, Field(gt=1)] | None = None
    # Known in simulations alone, since they compare with real rows. They look at the nearer end of an interval: a gate
    # fails for what was shown, not for what a small sample leaves possible.
    utility_gap: Annotated[Number, Field(gt=0, le=1)] | None = None
    membership_advantage: Annotated[Number, Field(gt=0, le=1)] | None = 0.1
    attribute_residual: Annotated[Number, Field(gt=0, le=1)] | None = 0.1


def _check_label(label: Label, column: Column | None) -> None:
    if not isinstance(column, CategoricalColumn):
        raise ValueError(f"label.column={label.column}: expected a categorical column of `columns`")
    if column.missing:
        raise ValueError("label.column: a label cannot be missing; set `missing: false`")
    if len(column.values) > MAX_LABELS:
        raise ValueError(f"label.column: expected at most {MAX_LABELS} classes; join some with `groups`")
    if label.positive not in column.values:
        raise ValueError(f"label.positive={label.positive}: expected one of the label's categories")


def _check_windows(windows: Windows, unit: Unit, columns: dict[str, Column]) -> None:
    if unit.key is None:
        raise ValueError("windows: needs unit.key, which joins the two tables")
    if unit.max_records != 1:
        raise ValueError("windows: unit.max_records must be 1, one row a unit in the first table")
    if STEPS in columns or STEPS in windows.channels:
        raise ValueError(f"columns: {STEPS} is the name of the number of steps")
    if unit.key in windows.ignore:
        raise ValueError("windows.ignore: holds unit.key, which joins the two tables")
    for name in (*windows.channels, windows.time.column):
        if name in columns or name == unit.key:
            raise ValueError(f"windows: {name} is a column of the first table too")


def _check_names(study: "Study") -> None:
    for name, listed in (("ignore", study.ignore), ("table.header", study.table.header or ())):
        if len(set(listed)) != len(listed):
            raise ValueError(f"{name}: a name is listed twice")
    for name in study.ignore:
        if name in study.columns or name == study.unit.key:
            raise ValueError(f"ignore: {name} is used as a column or as the unit key")


def _check_discriminators(study: "Study") -> None:
    if study.discriminators.neural and study.noise.rounds < 2:
        raise ValueError("noise.rounds: a neural discriminator needs 2 at least, since it begins with the second")
    if study.critic.heads == "temporal" and study.windows is None:
        raise ValueError("critic.heads: a temporal one needs `windows`")
    if study.critic.sampling < 1 and study.privacy.accountant != "rdp":
        raise ValueError("critic.sampling: only `privacy.accountant: rdp` counts what sampling hides")
    if not study.discriminators.shares(windows=study.windows is not None):
        raise ValueError("discriminators: all are switched off")


def _check_gates(study: "Study") -> None:
    if study.gates.monitor_auc is not None and study.privacy.holdout == 0:
        raise ValueError("gates.monitor_auc: needs held-out units; set privacy.holdout")


def _check_masks(study: "Study") -> None:
    if study.privacy.noise_trust == "local":
        return
    if study.rounds.quorum is not None:
        raise ValueError("rounds.quorum: masks cancel over all sites alone; leave it out, or privacy.noise_trust")
    if study.rounds.site_units is not None:
        raise ValueError("rounds.site_units: masks hide what a site states; leave it out, or privacy.noise_trust")
    if study.discriminators.scope == "local":
        raise ValueError(
            "discriminators.scope: local sends generators that show what one site measured; it goes with "
            "`privacy.noise_trust: local` alone"
        )


def _check_constraints(study: "Study") -> None:
    check_sums(study.constraints, study.columns, label=study.label.column)
    if len(totals(study.constraints)) > len(study.features) - 1:
        raise ValueError("constraints: a column that is no sum is needed beside the label")
    allowed_moves(study.constraints, study.channels)
    directions(study.constraints, study.channels)
    check_constraints(study.constraints, study.columns)


class Study(Section):
    """One study, whole. See docs/study.md for every key."""

    schema_version: Annotated[Literal["privshare.study/1"], Field(alias="schema")] = STUDY_SCHEMA
    # Set by a draft that was made from rows; such a study is not accepted.
    draft: bool = False
    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    purpose: Text = ""
    unit: Unit = Unit()
    label: Label
    table: FileLayout = FileLayout()
    columns: dict[Text, Column]
    ignore: tuple[Text, ...] = ()
    windows: Windows | None = None
    constraints: tuple[Constraint, ...] = ()
    privacy: Privacy
    discriminators: Discriminators = Discriminators()
    critic: Critic = Critic()
    noise: Noise = Noise()
    rounds: Rounds = Rounds()
    model: Model = Model()
    release: Release = Release()
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.draft:
            raise ValueError("draft: replace what was read off the rows by public knowledge, then delete `draft: true`")
        if len(self.columns) < 2:
            raise ValueError("columns: at least the label and one more column are needed")
        _check_label(self.label, self.columns.get(self.label.column))
        try:
            mu_of(epsilon=self.privacy.epsilon, delta=self.privacy.delta)
        except ValueError:
            raise PydanticCustomError(
                _UNATTAINABLE, "privacy.epsilon: with this delta no practical noise level gives it"
            ) from None
        if self.unit.key is None and self.unit.max_records > 1:
            raise ValueError("unit.max_records: needs unit.key, the column that tells units apart")
        if self.unit.key in self.columns:
            raise ValueError("unit.key: the key identifies a unit and cannot be a column of the synthetic table")
        _check_names(self)
        _check_discriminators(self)
        _check_masks(self)
        _check_gates(self)
        if self.windows is not None:
            _check_windows(self.windows, self.unit, self.columns)
        _check_constraints(self)
        return self

    @property
    def accountant(self) -> Accountant:
        """What every site's spends are counted in."""
        if self.privacy.accountant == "gdp":
            return GdpAccountant()
        return RdpAccountant(default_order(epsilon=self.privacy.epsilon, delta=self.privacy.delta))

    @property
    def features(self) -> dict[str, Column]:
        """Every column but the label, in order."""
        return {name: column for name, column in self.columns.items() if name != self.label.column}

    @property
    def measured(self) -> dict[str, Column]:
        """What a table of units counts: features that are not computed, and the number of steps where it varies."""
        computed = totals(self.constraints)
        columns = {name: column for name, column in self.features.items() if name not in computed}
        if self.windows is not None and self.windows.varies:
            least, most = int(self.windows.empty == "refuse"), self.windows.length
            columns[STEPS] = IntegerColumn(type="integer", min=least, max=most, cells=most + 1)
        return columns

    @property
    def channels(self) -> dict[str, Column]:
        """The channels of the windows; none where there are no windows.

        Over many steps even thin tails are met often: unless the study says otherwise, channels are counted as sparse.
        """
        if self.windows is None:
            return {}
        channels: dict[str, Column] = {}
        for name, column in self.windows.channels.items():
            unsaid = not isinstance(column, CategoricalColumn) and column.sparse is None
            channels[name] = column.model_copy(update={"sparse": True}) if unsaid else column
        return channels

    @property
    def counts_moves(self) -> bool:
        """Whether it is counted how far channels move: a table of the temporal discriminator's, if it is on."""
        return self.windows is not None and self.discriminators.temporal > 0

    @property
    def site_steps(self) -> int:
        """Steps that a site trains in a round: all that are taken, where only it knows what its discriminators say."""
        rounds = self.rounds
        return rounds.local_steps + (rounds.refine_steps if self.discriminators.scope == "local" else 0)

    @property
    def label_values(self) -> tuple[str, ...]:
        """The label's classes, in order."""
        column = self.columns[self.label.column]
        assert isinstance(column, CategoricalColumn)
        return column.values

    def canonical(self) -> str:
        """The study as canonical JSON: keys in the model's order, no white space, defaults written out.

        The order of columns and categories is kept: codes are positions in it.
        """
        data = self.model_dump(mode="json", by_alias=True)
        if not self.constraints:
            # A study from before there were any has the digest that it had.
            del data["constraints"]
        if self.windows is not None and self.windows.max_gap is None:
            del data["windows"]["max_gap"]
        return json.dumps(data, separators=(",", ":"), allow_nan=False)

    def digest(self) -> str:
        """SHA-256 of the canonical form, in hex; two files that mean the same have the same digest."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    def with_overrides(self, **sections: dict[str, Any]) -> "Study":
        """The same study with some values of some sections replaced, validated anew; None leaves a value as it is.

        Raises:
            StudyError: a value is not allowed.
        """
        data = self.model_dump(mode="json", by_alias=True)
        for section, values in sections.items():
            data[section].update({key: value for key, value in values.items() if value is not None})
        return parse_study(data, source=self.name)


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `no` is text, 1e-6 is a number, a repeated key is an error."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (the base class's own mechanism)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a plain word", key_node.start_mark)
            # Names are text: 1 and "1" are one column.
            if str(key) in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key} is there twice", key_node.start_mark
                )
            seen.add(str(key))
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"true|false|True|False|TRUE|FALSE", "tfTF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] if _tag == "null" else [])]
    )


def read_yaml(path: Path, *, what: str) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        StudyError: the file is absent, unreadable, not YAML, or not a mapping; one line, with the place.
    """
    return _parse_yaml(path, _text_of(path, what=what))


def _text_of(path: Path, *, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError(f"{path}: no such {what}", ExitCode.STUDY_NOT_FOUND) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: cannot be read as UTF-8 text ({type(error).__name__})") from None


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    loader = None
    try:
        loader = _Loader(text)
        data = loader.get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark is not None else ""
        raise StudyError(f"{path}{where}: not valid YAML: {getattr(error, 'problem', None) or 'unreadable'}") from None
    # PyYAML's own constructors raise these on `!!int x`, on a number of 5,000 digits, on brackets 1,000 deep.
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StudyError(f"{path}: not valid YAML: unreadable ({type(error).__name__})") from None
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        raise StudyError(f"{path}: expected a mapping of keys at the top")
    return data


def load_study(path: Path) -> Study:
    """Read and validate a study file.

    Raises:
        StudyError: what is wrong, by its path in the file, with the nearest known key for an unknown one.
    """
    return _study_of(path, _text_of(path, what="study file"))


@functools.lru_cache(maxsize=8)
def _study_of(path: Path, text: str) -> Study:
    """Studies are frozen: a thousand simulated sites, which read one file, share what they read."""
    return parse_study(_parse_yaml(path, text), source=str(path))


def parse_study(data: dict[str, Any], *, source: str) -> Study:
    """Validate a study that was read already; `source` names it in errors."""
    try:
        return Study.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise StudyError(f"{source}: {explain(first, Study)}", _code_of(first)) from None


def explain(fault: Any, model: type[BaseModel]) -> str:
    """One line for one pydantic fault: the path of the field, then the rule."""
    # ("columns", name, type, key): the type is not a level of the file, but a column may be called like one.
    tag = {("columns",): 2, ("windows", "channels"): 3, ("constraints",): 2}
    at_tag = next((at for head, at in tag.items() if fault["loc"][: len(head)] == head), None)
    kinds = COLUMN_TYPES | CONSTRAINT_KINDS
    location = [str(part) for at, part in enumerate(fault["loc"]) if not (at == at_tag and part in kinds)]
    path = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(model, fault["loc"][:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if fault["type"] == "missing":
        return f"{path}: the key is needed and is not there"
    rule = fault["msg"].removeprefix("Value error, ")
    if not path:
        return str(rule)
    given = fault.get("input")
    if isinstance(given, int | float | str):
        # Escaped and cut: an error is one line, whatever the file holds.
        path = f"{path}={str(given).encode('unicode_escape').decode()[:_SHOWN]}"
    return f"{path}: {rule[0].lower()}{rule[1:]}"


def _code_of(fault: Any) -> ExitCode:
    if fault["type"] == _UNATTAINABLE:
        return ExitCode.EPSILON_INVALID
    return {
        ("privacy", "epsilon"): ExitCode.EPSILON_INVALID,
        ("privacy", "delta"): ExitCode.DELTA_INVALID,
    }.get(fault["loc"], ExitCode.STUDY_INVALID)


def _known_keys(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """The keys of the section at `location`, by the names that a file uses."""
    here: Any = model
    for part in location:
        if part in COLUMN_TYPES | CONSTRAINT_KINDS:
            here = (COLUMN_TYPES | CONSTRAINT_KINDS)[part]
        elif isinstance(here, type) and issubclass(here, BaseModel):
            here = next((field.annotation for name, field in here.model_fields.items() if name == part), here)
            options = typing.get_args(here) if isinstance(here, types.UnionType) else (here,)
            here = next(
                (option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), here
            )
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    return [field.alias or name for name, field in here.model_fields.items()]
