"""Variants at equal budget: each is an ordinary run, is not run twice, and the table says what was measured."""

import json
import math
from pathlib import Path

import pytest
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from common.data.encoding import make_grids
from common.data.histograms import resolutions
from common.privacy.ledger import read_ledger
from common.study import load_study
from common.synthesis.release import load_release
from common.wire.messages import Reply
from simulations import ablation
from simulations.run import app
from tests.simulations.test_bad_windows import EVENTS, STUDY, records, series

STUDIES = Path(ablation.__file__).parent / "studies"


def run(folder: Path, *options: str, study: str = STUDY.replace("WINDOWS", EVENTS)) -> Result:
    (folder / "study.yaml").write_text(study.replace("rounds: 1}", "rounds: 2}"), encoding="utf-8")
    records().to_csv(folder / "table.csv", index=False)
    series().to_csv(folder / "series.csv", index=False)
    files = {"--study": "study.yaml", "--data": "table.csv", "--series": "series.csv", "--out": "run"}
    arguments = [part for option, name in files.items() for part in (option, str(folder / name))]
    with threadpool_limits(1):
        return CliRunner().invoke(app, [*arguments, "--sites", "2", "--threads", "1", *options])


VARIANTS = ("--only", "measured only/fixed", "--only", "neural only/stage", "--only", "without temporal/pid")


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Three variants with two seeds each; its folder is only read, but by the test that goes on in it."""
    folder = tmp_path_factory.mktemp("ablation")
    return folder, run(folder, "--ablate", "2", *VARIANTS)


def test_the_table_has_a_line_a_variant_with_means_and_intervals(ablated: tuple[Path, Result]) -> None:
    folder, result = ablated
    assert result.exit_code == 0, result.stderr
    content = json.loads((folder / "run" / "ablation.json").read_text())
    assert [row["variant"] for row in content["rows"]] == [*VARIANTS[1::2], "real data"]
    for row in content["rows"]:
        variant, compared = row["variant"], "synthetic_vs_holdout"
        if variant == "real data":
            # Every variant has the same real units.
            variant, compared = VARIANTS[1], "floor_train_vs_holdout"
        found = []
        for seed in range(2):
            one = folder / "run" / f"{variant.replace(' ', '-').replace('/', '-')}-{seed}"
            evaluation = json.loads((one / "evaluation.json").read_text())
            found.append(evaluation["fidelity"][compared]["two_way_mean"])
        mean, half = row["two-way distance"]
        assert mean == pytest.approx(sum(found) / 2)
        # The 97.5 % quantile of Student's t with one degree of freedom is 12.706.
        assert half == pytest.approx(12.7062 * abs(found[0] - found[1]) / 2, rel=1e-4)
    assert (folder / "run" / "ablation.md").read_text() in result.stdout
    # Titles, three variants and real data; two of the variants beside the first.
    assert result.stdout.count("\n| ") == 4 + 3


def test_each_variant_is_compared_with_the_first_seed_by_seed(ablated: tuple[Path, Result]) -> None:
    folder, result = ablated
    content = json.loads((folder / "run" / "ablation.json").read_text())
    compared = {row["variant"]: row["two-way distance"] for row in content["differences"]}
    assert list(compared) == list(VARIANTS[3::2])
    for variant, (mean, half) in compared.items():
        differences = []
        for seed in range(2):
            found, first = (
                json.loads((folder / "run" / name.replace(" ", "-").replace("/", "-") / "evaluation.json").read_text())
                for name in (f"{variant}-{seed}", f"{VARIANTS[1]}-{seed}")
            )
            differences.append(
                found["fidelity"]["synthetic_vs_holdout"]["two_way_mean"]
                - first["fidelity"]["synthetic_vs_holdout"]["two_way_mean"]
            )
        assert mean == pytest.approx(sum(differences) / 2)
        assert half == pytest.approx(12.7062 * abs(differences[0] - differences[1]) / 2, rel=1e-4)
        star = " *" if abs(mean) > half else ""
        assert f"| {mean:+.4f} ± {half:.4f}{star} |" in result.stdout


def test_a_star_says_that_an_interval_does_not_hold_zero() -> None:
    rows = [{"variant": "one", "a": (0.02, 0.01), "b": (-0.02, 0.01), "c": (-0.01, 0.02), "d": (0.5, None), "e": None}]
    line = ablation._markdown("title", rows, compared=True).splitlines()[-1]
    assert line == "| one | +0.0200 ± 0.0100 * | -0.0200 ± 0.0100 * | -0.0100 ± 0.0200 | +0.5000 | - |"
    assert ablation._markdown("title", rows).splitlines()[-1].startswith("| one | 0.0200 ± 0.0100 | -0.0200")


def test_each_variant_measures_what_it_says_and_spends_the_whole_budget(ablated: tuple[Path, Result]) -> None:
    kinds = {}
    for variant in ("measured-only-fixed", "neural-only-stage", "without-temporal-pid"):
        folder = ablated[0] / "run" / f"{variant}-0"
        (charges,) = read_ledger(folder / "ledger" / "site_01.jsonl").charges.values()
        kinds[variant] = {request.split("/")[1].split("-")[0] for request in charges}
        last = json.loads((folder / "rounds.jsonl").read_text().splitlines()[-1])
        assert 0.999 < last["budget_used"] <= 1
    measured = {"one_way", "pairs", "couplings", "dynamics", "embedding", "monitor"}
    assert kinds["measured-only-fixed"] == measured
    assert kinds["neural-only-stage"] == {"one_way", "critic", "verdict", "monitor"}
    assert kinds["without-temporal-pid"] == measured - {"couplings", "dynamics"} | {"critic", "verdict"}


def test_a_variant_without_a_discriminator_has_no_head_of_it(ablated: tuple[Path, Result]) -> None:
    heads = {}
    for variant in ("neural-only-stage", "without-temporal-pid"):
        lines = map(json.loads, (ablated[0] / "run" / f"{variant}-0" / "rounds.jsonl").read_text().splitlines())
        (critic,) = (line for line in lines if line["step"] == "critic")
        heads[variant] = set(critic["heads"])
    assert heads == {"neural-only-stage": {"semantic", "temporal"}, "without-temporal-pid": {"semantic"}}


@pytest.mark.parametrize(
    ("has_windows", "variant", "neural", "heads"),
    [
        (True, "all", 0.2, "both"),
        (True, "without semantic", 0.2, "temporal"),
        (True, "without temporal", 0.2, "semantic"),
        (False, "without temporal", 0.2, "semantic"),
        # It has no other head.
        (False, "without semantic", 0.0, "both"),
    ],
)
def test_a_head_goes_with_the_discriminator_that_it_is_a_part_of(
    has_windows: bool, variant: str, neural: float, heads: str
) -> None:
    study = load_study(STUDIES / f"{'icu' if has_windows else 'adult'}.yaml")
    varied = ablation._varied(study, variant, "fixed")
    assert (varied.discriminators.neural, varied.critic.heads) == (neural, heads)
    assert varied.noise.schedule == "fixed"


def test_how_far_channels_move_is_asked_with_the_temporal_discriminator_alone(ablated: tuple[Path, Result]) -> None:
    study = load_study(ablated[0] / "study.yaml")
    grids, channels = make_grids(study.measured), make_grids(study.channels)
    for variant, moves in (("measured-only-fixed", len(channels)), ("without-temporal-pid", 0)):
        folder = ablated[0] / "run" / f"{variant}-0"
        (charges,) = read_ledger(folder / "ledger" / "site_01.jsonl").charges.values()
        events = {request.split("/")[1]: charge.event for request, charge in charges.items()}
        tables = sum(len(resolutions(grid)) for grid in (*grids, *channels)) + moves
        assert events["one_way"].squared_sensitivity == tables * events["one_way"].scale ** 2
        assert load_release(folder).moves.any() == bool(moves)


def test_a_site_charges_what_tables_of_two_channels_weigh(ablated: tuple[Path, Result]) -> None:
    folder = ablated[0] / "run" / "measured-only-fixed-0"
    study = load_study(ablated[0] / "study.yaml")
    (charges,) = read_ledger(folder / "ledger" / "site_01.jsonl").charges.values()
    events = {request.split("/")[1]: charge.event for request, charge in charges.items()}
    columns, channels = len(study.measured), len(study.channels)
    squared = {name: events[name].squared_sensitivity / events[name].scale ** 2 for name in ("pairs-1", "couplings-1")}
    # With half the noise each of them moves the release as four tables would.
    expected = columns * channels + 4 * math.comb(channels, 2)
    assert squared == {"pairs-1": math.comb(columns, 2), "couplings-1": expected}


def test_what_was_run_is_not_run_again_and_another_study_is_refused(ablated: tuple[Path, Result]) -> None:
    folder, _ = ablated

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (folder / "run").glob("*/*") if path.is_file()}

    before = written()
    assert run(folder, "--ablate", "2", *VARIANTS[:2]).exit_code == 0
    assert written() == before
    assert run(folder, "--ablate", "1", "--epsilon", "2", *VARIANTS[:2]).exit_code == 51


def test_an_unknown_variant_is_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "--ablate", "1", "--only", "nothing/pid")
    assert result.exit_code == 2
    assert "only=nothing/pid" in result.stderr


def test_local_discriminators_stay_at_their_sites(tmp_path: Path) -> None:
    result = run(
        tmp_path, "--ablate", "1", "--only", "measured at each site/pid", study=STUDY.replace("WINDOWS", EVENTS)
    )
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "run" / "measured-at-each-site-pid-0"
    for site in ("site_01", "site_02"):
        state = folder / "sites" / site
        sent = [Reply.decode(path.read_bytes()) for path in (state / "replies").glob("*")]
        kept = [Reply.decode(path.read_bytes()) for path in (state / "releases").glob("*.reply")]
        # What was kept has its numbers here, and only its event was told; the one-way tables and monitors were sent.
        assert {"counts" in reply.arrays for reply in kept} == {True}
        told = ["counts" in reply.arrays for reply in sent]
        assert (told.count(True), told.count(False)) == (1 + 2, 8)
    certificate = json.loads((folder / "certificate.json").read_text())
    assert len(certificate["sites"]["site_01"]["events"]) == 1 + 8 + 2
