"""What a study file may say, how it is named for what it means, and that docs/study.md says the same."""

import json
import re
import types
import typing
from collections.abc import Callable
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from common.data.constraints import CONSTRAINT_KINDS
from common.data.schema import COLUMN_TYPES, IntegerColumn, Section
from common.errors import ExitCode, PrivShareError, StudyError
from common.study import STUDY_SCHEMA, Privacy, Study, load_study, parse_study

DOCS = Path(__file__).resolve().parents[2] / "docs" / "study.md"

STUDY = """\
name: toy
label: {column: ill, positive: "yes"}
columns:
  age: {type: integer, min: 0, max: 99}
  dose: {type: continuous, min: 0, max: 5}
  ward: {type: categorical, categories: [north, south]}
  ill: {type: categorical, categories: ["no", "yes"]}
privacy: {epsilon: 1, delta: 1e-6}
"""
AGE = "  age: {type: integer, min: 0, max: 99}\n"
WARD = "  ward: {type: categorical, categories: [north, south]}\n"
ILL = '  ill: {type: categorical, categories: ["no", "yes"]}\n'

Load = Callable[..., Study]
Refuse = Callable[..., StudyError]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Reads the study, after some texts in it were replaced by others."""

    def read(*changes: tuple[str, str], text: str = STUDY) -> Study:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "study.yaml"
        path.write_text(text, encoding="utf-8")
        return load_study(path)

    return read


@pytest.fixture
def refuse(load: Load, tmp_path: Path) -> Refuse:
    """The error of such a study; one line that begins with the file."""

    def read(*changes: tuple[str, str], text: str = STUDY) -> StudyError:
        with pytest.raises(StudyError) as refused:
            load(*changes, text=text)
        message = str(refused.value)
        assert message.splitlines() == [message]
        assert message.startswith(str(tmp_path / "study.yaml"))
        return refused.value

    return read


def test_a_short_study_is_read_and_defaults_fill_the_rest(load: Load) -> None:
    study = load()
    assert list(study.columns) == ["age", "dose", "ward", "ill"]
    assert list(study.features) == ["age", "dose", "ward"]
    assert study.label_values == ("no", "yes")
    assert study.unit.key is None
    assert study.schema_version == STUDY_SCHEMA


def test_a_study_cannot_be_changed(load: Load) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().privacy.epsilon = 9.0


# --- keys


@pytest.mark.parametrize(
    ("old", "new", "path", "near"),
    [
        ("name: toy", "name: toy\npurpse: x", "purpse", "purpose"),
        ("name: toy", "name: toy\nschema_version: x", "schema_version", "schema"),
        ("delta: 1e-6", "delta: 1e-6, holdot: 0", "privacy.holdot", "holdout"),
        ("positive:", "postive: no, positive:", "label.postive", "positive"),
        ("name: toy", "name: toy\nunit: {nam: x}", "unit.nam", "name"),
        ("name: toy", "name: toy\ntable: {delimeter: x}", "table.delimeter", "delimiter"),
        ("name: toy", "name: toy\nrounds: {counts: 1}", "rounds.counts", "count"),
        ("name: toy", "name: toy\nmodel: {widht: 9}", "model.widht", "width"),
        ("name: toy", "name: toy\nrelease: {row: 9}", "release.row", "rows"),
        ("max: 99", "max: 99, mx: 9", "columns.age.mx", "max"),
        ("max: 5", "max: 5, decimal: 1", "columns.dose.decimal", "decimals"),
        ("categories: [north", "groop: {}, categories: [north", "columns.ward.groop", "groups"),
        # Columns may be called like a type or like a key.
        ("age: {", "integer: {mx: 9, ", "columns.integer.mx", "max"),
        ("dose: {", "categorical: {mx: 9, ", "columns.categorical.mx", "max"),
        ("age: {", "min: {mx: 9, ", "columns.min.mx", "max"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(
    refuse: Refuse, old: str, new: str, path: str, near: str
) -> None:
    assert str(refuse((old, new))).endswith(f": {path}: unknown key; did you mean {near}?")


def test_an_unknown_key_near_to_none_is_refused_with_all_known_ones(refuse: Refuse) -> None:
    message = str(refuse(("delta: 1e-6", "delta: 1e-6, zzz: 0")))
    assert message.endswith(f": privacy.zzz: unknown key; known keys: {', '.join(Privacy.model_fields)}")
    assert "known keys: type" not in message


@pytest.mark.parametrize(
    ("old", "path"),
    [
        ("name: toy\n", "name"),
        ('label: {column: ill, positive: "yes"}\n', "label"),
        ("column: ill, ", "label.column"),
        (', positive: "yes"', "label.positive"),
        ("privacy: {epsilon: 1, delta: 1e-6}\n", "privacy"),
        ("epsilon: 1, ", "privacy.epsilon"),
        (", delta: 1e-6", "privacy.delta"),
        (", max: 99", "columns.age.max"),
        ("min: 0, max: 5", "columns.dose.min"),
    ],
)
def test_a_missing_key_is_named(refuse: Refuse, old: str, path: str) -> None:
    assert str(refuse((old, ""))).endswith(f": {path}: the key is needed and is not there")


def test_a_column_without_a_type_or_with_an_unknown_one_is_named(refuse: Refuse) -> None:
    assert ": columns.age: " in str(refuse(("type: integer, ", "")))
    message = str(refuse(("type: integer", "type: int")))
    assert ": columns.age: " in message
    assert all(known in message for known in COLUMN_TYPES)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("name: toy", "name: [toy]", "name"),
        ("name: toy", "name: to y", "name=to y"),
        ("name: toy", "name: toy\nschema: privshare.study/2", "schema=privshare.study/2"),
        ("name: toy", "name: toy\nunit: 3", "unit=3"),
        ("name: toy", "name: toy\nunit: {surplus: keep}", "unit.surplus=keep"),
        ("name: toy", "name: toy\nunit: {key: id, max_records: 17}", "unit.max_records=17"),
        ("name: toy", "name: toy\nignore: id", "ignore=id"),
        ("name: toy", "name: toy\ntable: {delimiter: ab}", "table.delimiter=ab"),
        ("name: toy", "name: toy\nrounds: {count: 1.5}", "rounds.count=1.5"),
        ("name: toy", "name: toy\nrounds: {count: many}", "rounds.count=many"),
        ("name: toy", "name: toy\nrounds: {count: 0}", "rounds.count=0"),
        ("name: toy", "name: toy\nrelease: {rows: 0}", "release.rows=0"),
        ("delta: 1e-6", "delta: 1e-6, holdout: 0.5", "privacy.holdout=0.5"),
        ("delta: 1e-6", "delta: 1e-6, one_way_share: 1", "privacy.one_way_share=1"),
        ("delta: 1e-6", "delta: 1e-6, one_way_share: 0", "privacy.one_way_share=0"),
        ("max: 99", "max: old", "columns.age.max=old"),
        ("max: 99", "max: 9.5", "columns.age.max=9.5"),
        ("max: 99", "max: .inf", "columns.age.max=inf"),
        ("max: 5", "max: .inf", "columns.dose.max=inf"),
        ("max: 99", "max: 0", "columns.age"),
        ("max: 5", "max: 0", "columns.dose"),
        ("max: 99", "max: 9223372036854775808", "columns.age"),
        ("max: 99", "max: 99, special: [1.5]", "columns.age.special.0=1.5"),
        ("max: 99", "max: 99, special: [100]", "columns.age"),
        ("max: 99", "max: 99, special: [1, 1]", "columns.age"),
        ("max: 5", "max: 5, special: [5]", "columns.dose"),
        ("max: 99", "max: 99, cells: 1", "columns.age.cells=1"),
        ("max: 99", "max: 99, cells: 4097", "columns.age.cells=4097"),
        ("max: 99", "max: 99, scale: square", "columns.age.scale=square"),
        ("max: 99", "max: 99, scale_unit: 0", "columns.age.scale_unit=0"),
        ("max: 99", "max: 99, outside: keep", "columns.age.outside=keep"),
        ("age: {type: integer, min: 0, max: 99}", "age: 3", "columns.age=3"),
        ("[north, south]", "[north]", "columns.ward"),
        ("[north, south]", "[north, north]", "columns.ward"),
        ("[north, south]", "[north, south, 1.10]", "columns.ward.categories.2=1.1"),
        ("[north, south]", "[north, {a: b}]", "columns.ward.categories.1"),
        ("[north, south]", "[north, other], unlisted: other", "columns.ward"),
        ("categories: [north, south]", "unlisted: refuse", "columns.ward"),
        ("[north, south]", "[north, south], groups: {a: [b]}", "columns.ward"),
        ("categories: [north, south]", "groups: {a: [b], c: [b]}", "columns.ward"),
        ("categories: [north, south]", "groups: {a: [], c: [b]}", "columns.ward"),
        ("categories: [north, south]", "groups: {a: [1-5], b: [3-7]}", "columns.ward"),
        ("categories: [north, south]", "groups: {a: [5-1], b: [7]}", "columns.ward"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_by_its_path(refuse: Refuse, old: str, new: str, path: str) -> None:
    assert f": {path}: " in str(refuse((old, new)))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("epsilon: 1", "epsilon: true", "privacy.epsilon"),
        ("delta: 1e-6", "delta: false", "privacy.delta"),
        ("delta: 1e-6", "delta: 1e-6, holdout: false", "privacy.holdout"),
        ("delta: 1e-6", "delta: 1e-6, one_way_share: true", "privacy.one_way_share"),
        ("name: toy", "name: toy\nrounds: {count: true}", "rounds.count"),
        ("name: toy", "name: toy\nmodel: {latent: true}", "model.latent"),
        ("name: toy", "name: toy\nmodel: {learning_rate: true}", "model.learning_rate"),
        ("name: toy", "name: toy\nrelease: {rows: true}", "release.rows"),
        ("name: toy", "name: toy\nunit: {max_records: true}", "unit.max_records"),
        ("max: 99", "max: true", "columns.age.max"),
        ("min: 0, max: 5", "min: false, max: 5", "columns.dose.min"),
        ("max: 5", "max: 5, decimals: true", "columns.dose.decimals"),
        ("max: 99", "max: 99, special: [true]", "columns.age.special.0"),
        ("max: 99", "max: 99, cells: true", "columns.age.cells"),
    ],
)
def test_true_is_not_a_number(refuse: Refuse, old: str, new: str, path: str) -> None:
    value = "True" if "true" in new else "False"
    assert str(refuse((old, new))).endswith(f": {path}={value}: expected a number, not true or false")


# --- scalars of YAML 1.2


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-6", 1e-6), ("1E-6", 1e-6), ("1.0e-6", 1e-6), (".000001", 1e-6), ("+1e-06", 1e-6), ("1.e-6", 1e-6)],
)
def test_a_number_with_an_exponent_is_a_number(load: Load, text: str, value: float) -> None:
    assert load(("1e-6", text)).privacy.delta == value


def test_words_that_other_yaml_takes_for_booleans_or_dates_are_text(load: Load) -> None:
    words = "[no, yes, on, off, y, n, 1979-01-01, 1:30, 0x1F, 1_000, 010, 0o7, =, NaN, 12]"
    column = load(("[north, south]", words)).columns["ward"]
    assert column.values == tuple(words[1:-1].split(", "))  # type: ignore[union-attr]


@pytest.mark.parametrize("word", ["true", "False", "~", "null", "1.5", "1e3"])
def test_what_is_not_text_is_refused_where_a_category_is_due(refuse: Refuse, word: str) -> None:
    assert ": columns.ward.categories.1" in str(refuse(("south", word)))


@pytest.mark.parametrize("old", ["epsilon: 1", "delta: 1e-6"])
@pytest.mark.parametrize("value", ["yes", "0x1", "one", "[1]", "{}", "~"])
def test_text_that_is_no_number_is_refused_where_a_number_is_due(refuse: Refuse, old: str, value: str) -> None:
    name = old.partition(":")[0]
    assert f": privacy.{name}" in str(refuse((old, f"{name}: {value}")))


@pytest.mark.parametrize(
    ("old", "new", "key", "line"),
    [
        ("name: toy\n", "name: toy\nname: toy\n", "name", 2),
        ("epsilon: 1", "epsilon: 1, epsilon: 2", "epsilon", 8),
        (AGE, AGE + AGE, "age", 5),
        (AGE, AGE + AGE.replace("age", '"age"'), "age", 5),
        # One name, whether YAML reads it as a number or as text.
        (AGE, AGE.replace("age", "7") + AGE.replace("age", '"7"'), "7", 5),
        (AGE, AGE.replace("age", '"7"') + AGE.replace("age", "7"), "7", 5),
        ("max: 99", "max: 99, max: 98", "max", 4),
    ],
)
def test_a_repeated_key_is_refused_by_its_line(refuse: Refuse, old: str, new: str, key: str, line: int) -> None:
    assert str(refuse((old, new))).endswith(f":{line}: not valid YAML: the key {key} is there twice")


@pytest.mark.parametrize("text", ["draft: true\n" + STUDY, STUDY + "draft: True\n", STUDY + "draft: 'true'\n"])
def test_a_draft_is_refused(refuse: Refuse, load: Load, text: str) -> None:
    error = refuse(text=text)
    assert ": draft: " in str(error)
    assert error.code == ExitCode.STUDY_INVALID
    assert load(text=STUDY + "draft: false\n") == load()


# --- rules across keys


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ([("column: ill", "column: age")], "label.column=age"),
        ([("column: ill", "column: absent")], "label.column=absent"),
        ([(ILL, ILL.replace("}", ", missing: true}"))], "label.column"),
        ([('["no", "yes"]', "[a, b, c, d, e, f, g, h, yes]")], "label.column"),
        ([('positive: "yes"', "positive: maybe")], "label.positive=maybe"),
        ([(AGE, ""), (WARD, ""), ("  dose: {type: continuous, min: 0, max: 5}\n", "")], "columns"),
    ],
)
def test_a_label_that_cannot_be_one_is_refused(refuse: Refuse, changes: list[tuple[str, str]], path: str) -> None:
    assert f": {path}: " in str(refuse(*changes))


def test_a_label_may_have_eight_classes_and_any_of_them_may_be_positive(load: Load) -> None:
    study = load(('["no", "yes"]', "[a, b, c, d, e, f, g, yes]"))
    assert len(study.label_values) == 8


def test_a_group_or_the_class_of_unlisted_values_may_be_positive(load: Load) -> None:
    assert load(('categories: ["no", "yes"]', 'groups: {"no": [a], "yes": [1-5]}')).label_values == ("no", "yes")
    other = load(('["no", "yes"]', '["no"], unlisted: other'), ('positive: "yes"', "positive: other"))
    assert other.label_values == ("no", "other")


@pytest.mark.parametrize(
    ("extra", "path"),
    [
        ("unit: {max_records: 2}", "unit.max_records"),
        ("unit: {key: age}", "unit.key"),
        ("unit: {key: ill}", "unit.key"),
        ("unit: {key: id}\nignore: [id]", "ignore"),
        ("ignore: [age]", "ignore"),
        ("ignore: [a, a]", "ignore"),
        ("table: {header: [a, a]}", "table.header"),
        ("table: {header: [a, 1, '1']}", "table.header"),
    ],
)
def test_a_column_has_one_use(refuse: Refuse, extra: str, path: str) -> None:
    assert f": {path}: " in str(refuse(text=f"{STUDY}{extra}\n"))


# --- exit codes


@pytest.mark.parametrize("value", ["0", "-1", "1e9", ".nan", ".inf", "true", "x", "~", "[]"])
def test_epsilon_and_delta_have_exit_codes_of_their_own(refuse: Refuse, value: str) -> None:
    assert refuse(("epsilon: 1", f"epsilon: {value}")).code == ExitCode.EPSILON_INVALID
    assert refuse(("delta: 1e-6", f"delta: {value}")).code == ExitCode.DELTA_INVALID


def test_each_fault_of_the_file_has_its_exit_code(refuse: Refuse, tmp_path: Path) -> None:
    assert refuse(("epsilon: 1, ", "")).code == ExitCode.EPSILON_INVALID
    assert refuse((", delta: 1e-6", "")).code == ExitCode.DELTA_INVALID
    assert refuse(("delta: 1e-6", "delta: 1")).code == ExitCode.DELTA_INVALID
    assert refuse(("delta: 1e-6", "delta: 1e-6, holdout: 2")).code == ExitCode.STUDY_INVALID
    assert refuse(("name: toy", "nam: toy")).code == ExitCode.STUDY_INVALID
    with pytest.raises(StudyError, match="no such study file") as absent:
        load_study(tmp_path / "absent.yaml")
    assert absent.value.code == ExitCode.STUDY_NOT_FOUND


def test_a_guarantee_that_no_noise_level_gives_is_refused(refuse: Refuse) -> None:
    # Each is a number in its range; together they ask for more noise than anything would survive.
    error = refuse(("epsilon: 1, delta: 1e-6", "epsilon: 1e-9, delta: 1e-9"))
    assert "privacy.epsilon: " in str(error)
    assert error.code == ExitCode.EPSILON_INVALID


# --- files that are no study at all


@pytest.mark.parametrize(
    "text",
    [
        "a: [1, 2",
        "a: b: c",
        "a: 1\n\tb: 2",
        "? [a]\n: 1",
        "? {a: 1}\n: 1",
        "? !!set {a}\n: 1",
        "a: *unknown",
        "a: &a [*a]",
        "<<: {a: 1}",
        "a: 1\n---\nb: 2",
        "a: !!python/object:os.system x",
        "a: !!int x",
        "a: !!float x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!binary é",
        "!!map [1]",
        "a: !!map b",
        "a\0b",
        "\x07",
        "a: " + "9" * 5000,
        "[" * 3000,
        '"a\\nb": 1\n"a\\nb": 2',
        f'{STUDY}"un\\nknown": 1',
        f'{STUDY}"un\\u2028known": 1',
        f'{STUDY}"un\\e[31mknown": 1',
        STUDY.replace("toy", '"to\\ny"'),
        STUDY.replace("toy", '"to\\u0085y"'),
        STUDY.replace("north", '"nor\\nth "'),
        f"{STUDY}1: 1",
        f"{STUDY}true: 1",
        STUDY.replace("age:", "true:"),
        STUDY.replace("age:", "~:"),
    ],
)
def test_whatever_is_not_a_study_ends_in_one_line_that_names_the_file(refuse: Refuse, text: str) -> None:
    assert refuse(text=text).code == ExitCode.STUDY_INVALID


def test_a_folder_and_bytes_that_are_no_text_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"name: \xff\xfe")
    for path in (tmp_path, tmp_path / "bytes"):
        with pytest.raises(StudyError, match="cannot be read as UTF-8 text") as refused:
            load_study(path)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["", "~", "- a", "just words", "3"])
def test_a_file_that_is_no_mapping_is_refused_for_that(refuse: Refuse, text: str) -> None:
    assert str(refuse(text=text)).endswith("study.yaml: expected a mapping of keys at the top")


def test_a_syntax_error_is_named_by_its_line(refuse: Refuse) -> None:
    assert "study.yaml:5: not valid YAML: " in str(refuse(("max: 5}", "max: 5}}")))


_MARKS = ["[", "]", "{", "}", ":", "-", "?", ",", "#", '"', "'", "|", ">", "~", "@", "`", "é", "\\n", "\\u2028", "true"]
_MARKS += ["1e999", "...", "!!int", "!!float", "!!set", "!!null", "!!map", "&a", "*a"]
_PIECES = [
    *_MARKS,
    *(f"{mark} " for mark in _MARKS),
    "\n",
    "\t",
    "---\n",
    "%YAML 9.9\n",
    "\x85",
    "\u2029",
    "\ufeff",
    "9" * 400,
]


@given(st.lists(st.tuples(st.integers(0, len(STUDY)), st.sampled_from(_PIECES)), min_size=1, max_size=4))
@settings(deadline=None, max_examples=150)
def test_a_damaged_study_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, str]]
) -> None:
    text = STUDY
    for place, piece in damage:
        text = text[:place] + piece + text[place:]
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        load_study(path).digest()
    except PrivShareError as error:
        assert str(error).isprintable()  # noqa: PT017 (either outcome is right)


# --- the digest


FULL: dict[str, Any] = {
    "schema": STUDY_SCHEMA,
    "name": "full",
    "unit": {"key": "id"},
    "label": {"column": "ill", "positive": "yes"},
    "columns": {
        "age": {"type": "integer", "min": 0, "max": 99},
        "dose": {"type": "continuous", "min": 0, "max": 5},
        "ward": {"type": "categorical", "categories": ["no", "yes", "south"]},
        "ill": {"type": "categorical", "categories": ["no", "yes"]},
    },
    "privacy": {"epsilon": 1, "delta": 1e-6, "accountant": "rdp"},
}
# Another value for every key of every section, beside the three that a study cannot have otherwise.
_NUMERIC = {
    "scale": "log",
    "scale_unit": 2.0,
    "cells": 99,
    "special": [1],
    "sparse": True,
    "outside": "clip",
    "missing": True,
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "": {
        "name": "other",
        "purpose": "why",
        "ignore": ["note"],
        "constraints": [{"kind": "implies", "if": ["age<18"], "then": ["ward=south"]}],
    },
    "unit": {"name": "patient", "key": "pid", "max_records": 2, "surplus": "drop"},
    "label": {"column": "ward", "positive": "no"},
    "table": {"delimiter": ";", "header": ["id", "age"], "missing_markers": ["?"], "comment": "#"},
    "privacy": {
        "epsilon": 2,
        "delta": 1e-7,
        "one_way_share": 0.123,
        "holdout": 0.123,
        "accountant": "gdp",
        "noise_trust": "masked",
    },
    "discriminators": {"statistical": 2, "temporal": 2, "semantic": 1, "neural": 1, "scope": "local"},
    "critic": {
        "heads": "semantic",
        "width": 8,
        "steps": 9,
        "learning_rate": 0.0123,
        "sampling": 0.5,
        "clip_norm": 2,
        "strength": 2,
    },
    "noise": {
        "schedule": "fixed",
        "rounds": 2,
        "kappa": 0.5,
        "direction": "lag",
        "again": 0.5,
        "max_share": 0.9,
        "goal": 0.8,
        "reference_auc": 0.8,
    },
    "rounds": {
        "count": 11,
        "trainers": 3,
        "local_steps": 7,
        "refine_steps": 9,
        "quorum": 2,
        "aggregation": "mean",
        "site_units": 5000,
    },
    "model": {
        "latent": 9,
        "width": 99,
        "blocks": 3,
        "batch": 98,
        "learning_rate": 0.0123,
        "max_bins": 9,
        "body": "attention",
        "channel_bins": 9,
        "states": 9,
    },
    "release": {"rows": 77},
    "gates": {
        "monitor_auc": 0.6,
        "misfit": 3,
        "utility_gap": 0.2,
        "membership_advantage": 0.3,
        "attribute_residual": 0.4,
    },
    "columns.age": {"min": -1, "max": 98, **_NUMERIC},
    "columns.dose": {"min": -1, "max": 4, "decimals": 2, **_NUMERIC},
    "columns.ward": {"categories": ["no", "south"], "unlisted": "other", "missing": True},
}
_FIXED = {
    *("schema", "draft", "type", "unit", "label", "table", "columns", "windows", "privacy", "discriminators", "critic"),
    *("noise", "rounds", "model", "release", "gates"),
}
GRID = {
    "layout": "grid",
    "length": 4,
    "time": {"column": "hour"},
    "step": 1,
    "channels": {"rate": {"type": "integer", "min": 0, "max": 99, "missing": True}},
}
EVENTS = {**GRID, "layout": "events", "step": None}
OTHER_WINDOWS: list[tuple[dict[str, Any], str, Any]] = [
    (GRID, "layout", "events"),
    (GRID, "length", 5),
    (GRID, "time", {"column": "minute"}),
    (GRID, "step", 2),
    (GRID, "start", 3),
    (GRID, "longer", "last"),
    (GRID, "shorter", "refuse"),
    (GRID, "empty", "allow"),
    (GRID, "unsorted", "sort"),
    (GRID, "combine", {"rate": "mean"}),
    (GRID, "channels", {"rate": {"type": "integer", "min": 0, "max": 98, "missing": True}}),
    (GRID, "ignore", ["note"]),
    (EVENTS, "time", {"column": "hour", "type": "timestamp"}),
    (EVENTS, "ties", "keep"),
    (GRID, "max_gap", 2),
    (EVENTS, "gap", "rate"),
]
"""A value other than the one in that section, for every key of windows."""


def digest(data: dict[str, Any]) -> str:
    return parse_study(data, source="test").digest()


def changed(path: str, key: str, value: Any) -> dict[str, Any]:
    data = deepcopy(FULL)
    section = data
    for part in filter(None, path.split(".")):
        section = section.setdefault(part, {})
    section[key] = value
    return data


def sections(model: type[BaseModel], path: str = "") -> dict[str, type[BaseModel]]:
    """Every section of a study but the columns, by its path."""
    found = {path: model}
    for name, field in model.model_fields.items():
        options = typing.get_args(field.annotation) if isinstance(field.annotation, types.UnionType) else ()
        for option in (field.annotation, *options):
            if isinstance(option, type) and issubclass(option, Section):
                found |= sections(option, f"{path}.{name}".strip("."))
    return found


def keys_of(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def test_the_digest_differs_with_every_value_of_every_key() -> None:
    listed = {path: set(values) for path, values in OTHERWISE.items()}
    listed["columns.ward"].add("groups")
    known = {
        path: set(keys_of(model)) - (set() if path else _FIXED)
        for path, model in sections(Study).items()
        if not path.startswith("windows")
    }
    known |= {
        f"columns.{name}": set(keys_of(COLUMN_TYPES[kind])) - _FIXED
        for name, kind in (("age", "integer"), ("dose", "continuous"), ("ward", "categorical"))
    }
    assert listed == known
    digests = [digest(FULL)]
    digests += [digest(changed(path, key, value)) for path, keys in OTHERWISE.items() for key, value in keys.items()]
    grouped = deepcopy(FULL)
    grouped["columns"]["ward"] = {"type": "categorical", "groups": {"no": ["a"], "yes": ["b"], "south": ["c"]}}
    digests += [digest(grouped)]
    assert len(set(digests)) == len(digests)


def test_the_digest_differs_with_every_value_of_every_key_of_windows() -> None:
    known = {path: set(keys_of(model)) for path, model in sections(Study).items() if path.startswith("windows")}
    assert known.keys() == {"windows", "windows.time"}
    assert {key for _, key, _ in OTHER_WINDOWS} == known["windows"]
    assert known["windows.time"] == {"column", "type"}
    base = deepcopy(FULL)
    base["unit"] = {"name": "patient", "key": "pid"}
    all_windows = [GRID, EVENTS]
    for windows, key, value in OTHER_WINDOWS:
        changed_windows = {**windows, key: value}
        all_windows.append(changed_windows if key != "layout" else {**changed_windows, "step": None, "length": 6})
    digests = [digest(base), *[digest({**base, "windows": windows}) for windows in all_windows]]
    assert len(set(digests)) == len(digests)


def test_a_study_without_a_longest_gap_has_the_digest_from_before_there_was_one() -> None:
    study = {**FULL, "unit": {"name": "patient", "key": "pid"}, "windows": GRID}
    assert "max_gap" not in parse_study(study, source="test").canonical()
    assert digest({**study, "windows": {**GRID, "max_gap": None}}) == digest(study)


def test_the_digest_differs_with_the_order_of_columns_and_categories() -> None:
    columns = dict(reversed(FULL["columns"].items()))
    categories = list(reversed(FULL["columns"]["ward"]["categories"]))
    digests = [
        digest(FULL),
        digest({**FULL, "columns": columns}),
        digest(changed("columns.ward", "categories", categories)),
        digest(changed("columns.ill", "categories", ["yes", "no"])),
    ]
    assert len(set(digests)) == 4


def test_the_digest_is_the_same_for_the_same_meaning(load: Load) -> None:
    study = load()
    assert load(("epsilon: 1", "epsilon: 1.0")).digest() == study.digest()
    assert load(("1e-6", "0.000001")).digest() == study.digest()
    assert load(("north", '"north"')).digest() == study.digest()
    assert load(("min: 0, max: 99", "max: 99, min: 0")).digest() == study.digest()
    assert load(text="# a comment\n" + STUDY + "\n\n").digest() == study.digest()
    name, rest = STUDY.split("\n", 1)
    assert load(text=f"{rest}{name}\n").digest() == study.digest()


def test_defaults_that_are_written_out_do_not_change_the_digest(load: Load) -> None:
    for study in (load(), parse_study(FULL, source="test")):
        written = json.loads(study.canonical())
        assert written["rounds"].keys() == set(keys_of(sections(Study)["rounds"]))
        again = parse_study(written, source="test")
        assert again == study
        assert again.digest() == study.digest()
        assert again.canonical() == study.canonical()


# --- overrides


def test_overrides_replace_what_is_given_and_leave_the_rest(load: Load) -> None:
    study = load()
    other = study.with_overrides(privacy={"epsilon": 3.0, "delta": None}, rounds={"count": 2})
    assert (other.privacy.epsilon, other.privacy.delta, other.rounds.count) == (3.0, 1e-6, 2)
    assert other.digest() == load(("epsilon: 1", "epsilon: 3"), ("name: toy", "name: toy\nrounds: {count: 2}")).digest()
    assert study.privacy.epsilon == 1.0


def test_overrides_that_change_nothing_keep_the_digest() -> None:
    for path, values in OTHERWISE.items():
        for key, value in values.items():
            study = parse_study(changed(path, key, value), source="test")
            assert study.with_overrides(privacy={"epsilon": None}, rounds={}).digest() == study.digest()


def test_overrides_are_validated(load: Load) -> None:
    for values, code, path in (
        ({"epsilon": -1.0}, ExitCode.EPSILON_INVALID, "privacy.epsilon=-1.0"),
        ({"epsilon": float("nan")}, ExitCode.EPSILON_INVALID, "privacy.epsilon=nan"),
        ({"delta": 1.0}, ExitCode.DELTA_INVALID, "privacy.delta=1.0"),
        ({"epsilom": 1.0}, ExitCode.STUDY_INVALID, "privacy.epsilom"),
    ):
        with pytest.raises(StudyError) as refused:
            load().with_overrides(privacy=values)
        assert refused.value.code == code
        assert str(refused.value).startswith(f"toy: {path}: ")


# --- docs/study.md


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def table_rows(first: str) -> list[list[str]]:
    """The cells of the table whose first heading is `first`."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_example_in_the_docs_is_a_study(load: Load) -> None:
    example, windows, _ = blocks("yaml")
    study = load(text=example)
    assert study.label.positive in study.label_values
    one_row_a_unit = example.replace("max_records: 2 ", "max_records: 1 ")
    assert load(text=one_row_a_unit + windows).windows is not None


def test_the_constraints_in_the_docs_are_constraints() -> None:
    constraints = yaml.safe_load(blocks("yaml")[2])["constraints"]
    values = {
        "ward": ["maternity", "other"],
        "sex": ["f", "m"],
        "city": ["Rome", "Bonn"],
        "country": ["Italy", "Germany"],
    }
    yes_or_no = {name: ["no", "yes"] for name in ("by_card", "by_cash", "by_bill", "died")}
    categories = {name: {"type": "categorical", "categories": own} for name, own in (values | yes_or_no).items()}
    names = ("age", "systolic_min", "systolic_max", "wage", "rent")
    numbers = {name: {"type": "integer", "min": 0, "max": 250} for name in names}
    channels = {
        name: {"type": "categorical", "categories": ["stable", "critical", "dead"]} for name in ("stage", "status")
    }
    study = parse_study(
        {
            "name": "docs",
            "unit": {"name": "patient", "key": "pid"},
            "label": {"column": "died", "positive": "yes"},
            "columns": categories | numbers | {"income": {"type": "integer", "min": 0, "max": 500}},
            "windows": {"layout": "grid", "length": 4, "time": {"column": "hour"}, "step": 1, "channels": channels},
            "constraints": constraints,
            "privacy": {"epsilon": 1, "delta": 1e-6},
        },
        source="docs",
    )
    assert {one.kind for one in study.constraints} == set(CONSTRAINT_KINDS)


def test_the_docs_name_every_key() -> None:
    example = "".join(blocks("yaml"))
    prose = re.sub(r"^```.*?^```$", "", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    named = {*re.findall(r"(?:^|[\s{#])([a-z_]+):", example), *re.findall(r"`([a-z_]+)(?:: \w+)?`", prose)}
    models = (*sections(Study).values(), *COLUMN_TYPES.values(), *CONSTRAINT_KINDS.values())
    assert {key for model in models for key in keys_of(model)} <= named


def test_the_columns_table_of_the_docs_names_each_key_for_its_types_with_its_default() -> None:
    kinds = {"all": list(COLUMN_TYPES), "numbers": ["integer", "continuous"]}
    found: dict[str, set[str]] = {kind: {"type"} for kind in COLUMN_TYPES}
    for keys, kind, _, default in table_rows("key"):
        for key in re.findall(r"`(\w+)`", keys):
            for column in chain.from_iterable(kinds.get(one, [one]) for one in kind.split(", ")):
                found[column].add(key)
                fields = COLUMN_TYPES[column].model_fields
                field = next(field for name, field in fields.items() if key == (field.alias or name))
                if default.startswith("`"):
                    written = str(field.default).lower().removesuffix(".0")
                    assert default == f"`{written}`", f"{column}.{key}"
                elif not default:
                    assert field.is_required() or not field.default, f"{column}.{key}"
    assert found == {kind: set(keys_of(model)) for kind, model in COLUMN_TYPES.items()}
    assert IntegerColumn.model_fields["sparse"].default is None


def test_exit_codes_are_distinct_and_avoid_those_of_flower() -> None:
    values = [member.value for member in ExitCode.__members__.values()]
    assert len(set(values)) == len(values)
    assert all(value in (0, 2) or 10 <= value < 100 for value in values)


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"rounds": {"quorum": 2}}, "rounds.quorum: masks cancel over all sites alone"),
        ({"rounds": {"site_units": 500}}, "rounds.site_units: masks hide what a site states"),
        ({"discriminators": {"scope": "local"}}, "discriminators.scope: local sends generators"),
    ],
)
def test_masks_are_not_for_a_study_in_which_they_would_not_cancel_or_hide_nothing(
    section: dict[str, Any], says: str
) -> None:
    privacy = {**FULL["privacy"], "noise_trust": "masked"}
    assert parse_study({**FULL, "privacy": privacy}, source="test").privacy.noise_trust == "masked"
    assert parse_study({**FULL, **section}, source="test").privacy.noise_trust == "local"
    with pytest.raises(StudyError, match=f"test: {says}"):
        parse_study({**FULL, "privacy": privacy, **section}, source="test")


def test_a_temporal_head_needs_windows() -> None:
    assert parse_study({**FULL, "critic": {"heads": "semantic"}}, source="test").critic.heads == "semantic"
    with pytest.raises(StudyError, match=r"test: critic\.heads: a temporal one needs `windows`"):
        parse_study({**FULL, "critic": {"heads": "temporal"}}, source="test")
