"""TSTR and TRTR: one function, fixed classifiers, a threshold that the test table cannot move."""

from dataclasses import asdict, fields

import numpy as np
import pandas as pd
import pytest

from common.data.schema import parse_table
from common.evaluation.scores import MEASURES, Scores, score
from common.evaluation.utility import measure_utility, predict
from common.study import Study, parse_study

CLASSIFIERS = ("logistic_regression", "gradient_boosting")


def make_study(columns: dict[str, object] | None = None) -> Study:
    features = columns or {
        "colour": {"type": "categorical", "categories": ["red", "green", "blue"], "missing": True},
        "age": {"type": "integer", "min": 0, "max": 100, "missing": True},
        "amount": {"type": "continuous", "min": 0, "max": 1e6, "scale": "log", "missing": True},
    }
    return parse_study(
        {
            "name": "toy",
            "label": {"column": "ill", "positive": "yes"},
            "columns": {**features, "ill": {"type": "categorical", "categories": ["no", "yes", "unsure"]}},
            "privacy": {"epsilon": 1, "delta": 1e-6},
        },
        source="test",
    )


STUDY = make_study()


def draw(n: int, seed: int, *, missing: float = 0.0) -> pd.DataFrame:
    """A table whose label follows age, colour and amount, and at times neither class is sure."""
    generator = np.random.default_rng(seed)
    age = generator.integers(0, 101, n)
    colour = generator.choice(["red", "green", "blue"], n)
    amount = generator.lognormal(5, 2, n).clip(0, 1e6)
    signal = (age - 50) / 10 + 2.0 * (colour == "red") + (np.log(amount) - 5) / 2 - 2
    ill = np.where(signal + generator.logistic(size=n) > 0, "yes", generator.choice(["no", "unsure"], n))
    text = pd.DataFrame({"colour": colour, "age": age.astype(str), "amount": amount.astype(str)})
    text = text.mask(generator.random(text.shape) < missing, "")
    return parse_table(text.assign(ill=ill), STUDY.columns)


def with_labels(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    return table.assign(ill=pd.Series(labels, index=table.index).astype(table["ill"].dtype))


def shuffle_labels(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    return with_labels(table, np.random.default_rng(seed).permutation(table["ill"].to_numpy()).tolist())


def take(table: pd.DataFrame, label: str) -> pd.DataFrame:
    return table[table["ill"] == label]


TRAIN, TEST = draw(500, 1), draw(300, 2)


def test_a_learnable_label_is_learnt_by_both_classifiers() -> None:
    measured = measure_utility(TRAIN, TEST, STUDY, seed=0)
    assert tuple(measured) == CLASSIFIERS
    for scores in measured.values():
        assert scores.auc is not None
        assert scores.auc > 0.85
        assert scores.accuracy is not None
        assert scores.majority_accuracy is not None
        assert scores.accuracy > scores.majority_accuracy + 0.1


def test_shuffled_labels_give_chance() -> None:
    # Shuffled in training alone they would give a random direction, which a learnable test table can agree with. The
    # standard deviation of the AUC of 2000 shuffled records is 0.013.
    for scores in measure_utility(shuffle_labels(TRAIN, 3), shuffle_labels(draw(2000, 4), 5), STUDY, seed=0).values():
        assert scores.auc == pytest.approx(0.5, abs=0.065)


def test_the_three_classes_are_positive_against_the_rest() -> None:
    joined = TEST["ill"].to_numpy() == "yes"
    relabelled = with_labels(TEST, np.where(joined, "yes", "no").tolist())
    assert measure_utility(TRAIN, relabelled, STUDY, seed=0) == measure_utility(TRAIN, TEST, STUDY, seed=0)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_threshold_does_not_depend_on_the_test_table(name: str) -> None:
    negatives = TEST[TEST["ill"] != "yes"]
    few = pd.concat([take(TEST, "yes"), negatives.iloc[:5]])
    many = pd.concat([take(TEST, "yes"), *[negatives] * 10])
    recalls = {measure_utility(TRAIN, test, STUDY, seed=0)[name].recall for test in (few, TEST, many)}
    assert len(recalls) == 1


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_threshold_follows_the_training_share_of_positives(name: str) -> None:
    rare = pd.concat([take(TRAIN, "yes").iloc[:25], TRAIN[TRAIN["ill"] != "yes"]])
    scores = measure_utility(rare, rare, STUDY, seed=0)[name]
    # As many are predicted positive as there are, so precision and recall are one number; 0.5 would find fewer.
    assert scores.precision == pytest.approx(scores.recall)
    assert scores.f1 is not None
    assert scores.f1 > 0.3


def test_a_classifier_without_a_signal_predicts_the_frequent_side() -> None:
    train = with_labels(TRAIN.iloc[[0] * 30], ["yes"] * 5 + ["no"] * 25)
    for scores in measure_utility(train, TEST, STUDY, seed=0).values():
        assert (scores.recall, scores.precision, scores.f1) == (0.0, 0.0, 0.0)
        assert scores.accuracy == pytest.approx((TEST["ill"] != "yes").mean())


def test_majority_accuracy_is_that_of_the_test_table() -> None:
    test = pd.concat([take(TEST, "yes").iloc[:30], take(TEST, "no").iloc[:50], take(TEST, "unsure").iloc[:20]])
    assert {s.majority_accuracy for s in measure_utility(TRAIN, test, STUDY, seed=0).values()} == {0.7}


def test_missing_values_are_handled_where_only_one_of_the_tables_has_them() -> None:
    holes = draw(500, 5, missing=0.3)
    assert holes.drop(columns="ill").isna().any().all()
    for train, test in ((holes, TEST), (TRAIN, holes), (holes, draw(300, 6, missing=0.3))):
        for scores in measure_utility(train, test, STUDY, seed=0).values():
            assert scores.auc is not None
            assert scores.auc > 0.7


@pytest.mark.parametrize("column", ["colour", "age", "amount"])
def test_missing_itself_can_be_learnt(column: str) -> None:
    def telling(table: pd.DataFrame) -> pd.DataFrame:
        told = table.assign(**{column: table[column].mask(table["ill"] == "yes")})
        return told.astype(table.dtypes.to_dict())

    for scores in measure_utility(telling(TRAIN), telling(TEST), STUDY, seed=0).values():
        assert scores.auc is not None
        assert scores.auc > 0.95


def test_a_column_that_is_all_missing_or_constant_in_training_is_no_error() -> None:
    empty = TRAIN.assign(**{name: TRAIN[name].mask(TRAIN[name].notna()) for name in ("colour", "amount")})
    constant = TRAIN.assign(amount=1.0, colour=TRAIN["colour"].where(TRAIN["colour"] == "red", "red"))
    for train in (empty, constant):
        for scores in measure_utility(train, TEST, STUDY, seed=0).values():
            assert scores.reason is None
            assert scores.auc is not None
            assert scores.auc > 0.7


def test_a_category_that_only_the_test_table_holds_is_no_error() -> None:
    train = TRAIN[TRAIN["colour"] != "blue"]
    assert all(scores.reason is None for scores in measure_utility(train, TEST, STUDY, seed=0).values())


def test_one_positive_record_is_enough_to_train() -> None:
    train = pd.concat([take(TRAIN, "yes").iloc[:1], take(TRAIN, "no")])
    assert all(scores.reason is None for scores in measure_utility(train, TEST, STUDY, seed=0).values())


@pytest.mark.parametrize(
    "feature",
    [
        {"type": "categorical", "categories": [str(value) for value in range(300)]},
        {"type": "integer", "min": 0, "max": 300, "scale": "asinh"},
    ],
)
def test_one_kind_of_feature_and_three_hundred_categories_are_fine(feature: dict[str, object]) -> None:
    study = make_study({"code": feature})
    codes = np.arange(1200) % 300
    text = pd.DataFrame({"code": codes.astype(str), "ill": np.where(codes < 150, "yes", "no")})
    table = parse_table(text, study.columns)
    for scores in measure_utility(table, table, study, seed=0).values():
        assert scores.auc is not None
        assert scores.auc > 0.95


def test_numbers_are_put_on_the_schemas_scale() -> None:
    study = make_study({name: {"type": "continuous", "min": 1, "max": 1e6, "scale": "log"} for name in "ab"})
    exponents = np.random.default_rng(6).uniform(0, 6, (600, 2))
    # A product beyond a bound is a straight line on the log scale alone.
    ill = np.where(exponents.sum(axis=1) > 6, "yes", "no")
    text = pd.DataFrame(10**exponents, columns=["a", "b"]).astype(str).assign(ill=ill)
    table = parse_table(text, study.columns)
    auc = measure_utility(table, table, study, seed=0)["logistic_regression"].auc
    assert auc is not None
    assert auc > 0.99


def test_each_score_is_what_its_name_says() -> None:
    study = make_study({"age": {"type": "integer", "min": 0, "max": 99}})
    # Half of the training ages are positive, the upper ones: the cut lies between 49 and 50.
    ages = {"yes": [*range(50, 100)], "no": [*range(50)]}, {"yes": [30, 70, 90], "no": [10, 40, 55, 60]}
    train, test = (
        parse_table(
            pd.DataFrame([(str(age), ill) for ill in by for age in by[ill]], columns=["age", "ill"]), study.columns
        )
        for by in ages
    )
    scores = measure_utility(train, test, study, seed=0)["logistic_regression"]
    by_hand = {
        "auc": (1 + 4 + 4) / 12,  # pairs that are in order
        "auprc": (1 / 1 + 2 / 2 + 3 / 6) / 3,  # precision at each positive, from the top
        "accuracy": 4 / 7,
        "balanced_accuracy": (2 / 3 + 2 / 4) / 2,
        "f1": 4 / 7,  # 2 * 2 right / (4 predicted + 3 positive)
        "macro_f1": 4 / 7,  # of the others 2 * 2 right / (3 predicted + 4 there)
        "recall": 2 / 3,
        "precision": 2 / 4,
        "majority_accuracy": 4 / 7,
    }
    assert {name: asdict(scores)[name] for name in by_hand} == pytest.approx(by_hand)
    assert tuple(scores.intervals) == MEASURES
    assert scores.reason is None


@pytest.mark.parametrize("label", ["yes", "no"])
def test_a_single_class_gives_none_and_the_reason(label: str) -> None:
    for train, test, which in ((take(TRAIN, label), TEST, "training"), (TRAIN, take(TEST, label), "test")):
        measured = measure_utility(train, test, STUDY, seed=0)
        assert tuple(measured) == CLASSIFIERS
        for scores in measured.values():
            assert scores.reason == f"the {which} table does not hold both the positive class and another"
            assert scores.majority_accuracy is not None
            assert scores == Scores(majority_accuracy=scores.majority_accuracy, reason=scores.reason)


def test_a_table_without_rows_gives_none_and_the_reason() -> None:
    for train, test, which in ((TRAIN.iloc[:0], TEST, "training"), (TRAIN, TEST.iloc[:0], "test")):
        for scores in measure_utility(train, test, STUDY, seed=0).values():
            assert scores.reason == f"the {which} table has no rows"
            assert scores.auc is None
            assert (scores.majority_accuracy is None) == (which == "test")


def test_columns_outside_the_study_are_not_looked_at() -> None:
    train, test = (table.assign(leak=(table["ill"] == "yes").astype(float)) for table in (TRAIN, TEST))
    assert measure_utility(train, test, STUDY, seed=0) == measure_utility(TRAIN, TEST, STUDY, seed=0)


def test_the_tables_are_left_as_they_were() -> None:
    train, test = draw(200, 7, missing=0.1), draw(200, 8, missing=0.1)
    before = train.copy(deep=True), test.copy(deep=True)
    measure_utility(train, test, STUDY, seed=0)
    pd.testing.assert_frame_equal(train, before[0])
    pd.testing.assert_frame_equal(test, before[1])


def test_the_same_seed_gives_the_same_plain_floats() -> None:
    first = measure_utility(TRAIN, TEST, STUDY, seed=5)
    assert first == measure_utility(TRAIN, TEST, STUDY, seed=5)
    for scores in first.values():
        plain = [getattr(scores, item.name) for item in fields(Scores) if item.name not in ("reason", "intervals")]
        ends = [end for ends in scores.intervals.values() for end in ends]
        assert {type(value) for value in (*plain, *ends)} == {float}


def test_scores_are_those_of_what_was_predicted_once_and_a_row_is_predicted_by_itself() -> None:
    predicted = predict(TRAIN, TEST, STUDY, seed=0)
    order = np.random.default_rng(0).permutation(len(TEST))[:100]
    alone = predict(TRAIN, TEST.iloc[order], STUDY, seed=0)
    for name, scores in measure_utility(TRAIN, TEST, STUDY, seed=0).items():
        assert scores == score(predicted[name], seed=0)
        assert alone[name].threshold == predicted[name].threshold
        found = predicted[name].take(order)
        np.testing.assert_array_equal(alone[name].truth, found.truth)
        np.testing.assert_allclose(alone[name].scores, found.scores, rtol=1e-12)  # type: ignore[arg-type]


def test_an_interval_is_of_units_not_of_rows() -> None:
    # Four copies of each row tell no more than one, and rows of their own would seem to.
    copies = pd.concat([TEST] * 4, ignore_index=True)
    units = np.tile(np.arange(len(TEST)), 4)
    together = measure_utility(TRAIN, copies, STUDY, seed=0, units=units)
    apart, single = (measure_utility(TRAIN, test, STUDY, seed=0) for test in (copies, TEST))
    for name in CLASSIFIERS:
        assert together[name].intervals["auc"] == pytest.approx(single[name].intervals["auc"])
        widths = [np.ptp(measured[name].intervals["auc"]) for measured in (apart, single)]
        assert widths[0] == pytest.approx(widths[1] / 2, rel=0.15)


def test_units_of_another_number_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="units: expected one for each of 300 rows"):
        measure_utility(TRAIN, TEST, STUDY, seed=0, units=np.arange(299))
