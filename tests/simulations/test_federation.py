"""Whole runs through the command: what they leave behind, what they spend, what they draw, and how they go on."""

import copy
import hashlib
import itertools
import json
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file
from scipy.optimize import brentq
from scipy.stats import chi2, norm
from threadpoolctl import threadpool_limits
from typer.testing import CliRunner, Result

from client.records import parse_text, read_series_text, read_text, read_windows
from client.replies import Replies
from client.simulated_site import make_site_folder
from client.site import Site
from client.trainer import read_critic
from client.vault import Vault
from common.data.queries import catalogue
from common.data.schema import parse_table
from common.data.tables import sizes_of
from common.errors import ExitCode
from common.models.critics import MARGINALS, Adversary
from common.models.generator import Generator
from common.models.neural import improve
from common.models.targets import Targets
from common.models.training import Stretch
from common.models.verdicts import Opening, Verdict
from common.privacy.accountants import GdpAccountant
from common.privacy.events import GaussianEvent
from common.privacy.ledger import Asset, Charge, Ledger, read_ledger
from common.privacy.signatures import SigningKey
from common.privacy.witness import MOST_WITNESSES, Attestation, Statement
from common.study import Study, load_study
from common.wire.messages import Reply, Request, refusal
from common.wire.packing import unpack_bins
from server.learner import Learner
from server.quality import Distance
from server.rounds import Coordinator
from simulations.run import app

STUDY = """\
schema: privshare.study/1
name: tiny
unit: {name: person, key: person, max_records: 2, surplus: drop}
label: {column: outcome, positive: bad}
ignore: [region]
columns:
  amount: {type: continuous, min: 0, max: 100, decimals: 1, cells: 24}
  visits: {type: integer, min: 0, max: 9, missing: true}
  channel: {type: categorical, categories: [desk, phone, web]}
  outcome: {type: categorical, categories: [good, bad]}
privacy: {epsilon: 1, delta: 1.0e-5, holdout: 0.2}
discriminators: {semantic: 0.5, neural: 0.5}
critic: {steps: 2, width: 4}
noise: {rounds: 2}
rounds: {count: 4, trainers: 2, local_steps: 2, refine_steps: 3}
model: {latent: 4, width: 8, blocks: 1, batch: 16, max_bins: 4}
"""
EPSILON, DELTA = 1.0, 1e-5
UNITS = 400
SITES = (1, 2, 7, 32)
RELEASES = {
    "one_way": "train",
    "pairs-1": "train",
    "embedding-1": "train",
    "monitor-1": "holdout",
    "pairs-2": "train",
    "embedding-2": "train",
    "critic-2-1": "train",
    "critic-2-2": "train",
    "verdict-2": "holdout",
    "monitor-2": "holdout",
}
"""What each site releases, in order, and of which account."""
STEPS = (
    *("one_way", "noise", "pairs-1", "embedding-1", "round", "monitor-1", "monitor_result", "noise", "pairs-2"),
    *("embedding-2", "critic-2-1", "critic-2-2", "verdict-2", "critic", "round", "round", "round"),
    *("monitor-2", "monitor_result"),
)
# No statistical test below fails by chance more often than this.
FALSE_ALARM = 1e-9


def people() -> pd.DataFrame:
    """A table of text: one to three records a unit, keys that occur nowhere else."""
    random = np.random.default_rng(11)
    records = []
    for unit in range(UNITS):
        key = f"KEY{hashlib.sha256(bytes([unit % 256, unit // 256])).hexdigest()[:12]}"
        for _ in range(int(random.integers(1, 4))):
            is_bad = random.random() < 0.3
            amount = f"{random.uniform(0, 60) + 30 * is_bad:.1f}"
            visits = "" if random.random() < 0.1 else str(random.integers(0, 10))
            channel = str(random.choice(["desk", "phone", "web"]))
            records.append((key, amount, visits, channel, "bad" if is_bad else "good", f"region {unit % 5}"))
    return pd.DataFrame(records, columns=["person", "amount", "visits", "channel", "outcome", "region"], dtype="str")


def calls(keys: pd.Series) -> pd.DataFrame:
    """A long table of text: one to four calls a unit, never two at one time, often within the same hour."""
    random = np.random.default_rng(12)
    rows = []
    for key in keys:
        hours = np.cumsum(random.choice([0.4, 1, 3], random.integers(1, 5)))
        rows += [(key, f"{hour:.1f}", str(random.choice(["short", "long"]))) for hour in hours]
    return pd.DataFrame(rows, columns=["person", "hour", "call"], dtype="str")


@dataclass(frozen=True)
class Answered:
    """A request that a site answered, and its answer."""

    site: str
    request: Request
    reply: Reply


@dataclass(frozen=True)
class Finished:
    """A run: its folder, what it printed, what went to and fro, and the files that its sites were given."""

    folder: Path
    result: Result
    answers: list[Answered]
    tables: Path

    @property
    def study(self) -> Study:
        return load_study(self.folder / "study.lock.yaml")

    @property
    def certificate(self) -> dict[str, Any]:
        return read_json(self.folder / "certificate.json")

    @property
    def sites(self) -> list[str]:
        return sorted(path.stem for path in (self.folder / "ledger").glob("*.jsonl"))

    def charges(self, site: str) -> list[Charge]:
        return read_charges(self.folder / "ledger" / f"{site}.jsonl")


def read_charges(path: Path) -> list[Charge]:
    """The charges of the one study in a ledger, oldest first."""
    (charges,) = read_ledger(path).charges.values()
    return list(charges.values())


def read_json(path: Path) -> dict[str, Any]:
    """JSON without NaN."""

    def refuse(word: str) -> None:
        pytest.fail(f"{path}: {word}")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert isinstance(content, dict)
    return content


def sorted_json(data: dict[str, Any]) -> str:
    return json.dumps(data, sort_keys=True)


def invoke(folder: Path, *options: str, study: str = STUDY) -> Result:
    """A run over the tiny table, the result into `folder`; of a study with windows over the first record of a unit."""
    inputs = folder.parent
    (inputs / "study.yaml").write_text(study, encoding="utf-8")
    table = people().drop_duplicates("person") if "windows:" in study else people()
    table.to_csv(inputs / "table.csv", index=False)
    asked = ["--study", str(inputs / "study.yaml"), "--data", str(inputs / "table.csv"), "--out", str(folder)]
    if "windows:" in study:
        calls(table["person"]).to_csv(inputs / "series.csv", index=False)
        asked += ["--series", str(inputs / "series.csv")]
    return CliRunner().invoke(app, [*asked, "--threads", "1", "--json", *options])


def resume(folder: Path) -> Result:
    return CliRunner().invoke(app, ["--resume", str(folder), "--threads", "1", "--json"])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for a busy core make a tiny run fifty times slower."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Finished]:
    """A finished run with real noise over some number of sites; each is made once."""
    made: dict[int, Finished] = {}

    def run(sites: int) -> Finished:
        if sites not in made:
            made[sites] = finish(tmp_path_factory.mktemp(f"sites-{sites}"), sites)
        return made[sites]

    return run


def finish(inputs: Path, sites: int) -> Finished:
    """Run, and keep what sites were given and what they answered."""
    answers = []
    handle = Site.handle

    def recorded(site: Site, body: bytes) -> bytes:
        reply = handle(site, body)
        answers.append(Answered(site._settings.site, Request.decode(body), Reply.decode(reply)))
        return reply

    def kept(*arguments: Any, private: Path, **others: Any) -> object:
        return make_site_folder(*arguments, private=inputs / "private", **others)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "handle", recorded)
        patch.setattr("simulations.experiment.make_site_folder", kept)
        result = invoke(inputs / "run", "--sites", str(sites))
    assert result.exit_code == 0, result.stderr
    return Finished(inputs / "run", result, answers, inputs / "private")


def exact_spend(charges: list[Charge], account: str) -> Fraction:
    """Squared mu of an account, without rounding."""
    return sum(
        (
            Fraction(charge.event.squared_sensitivity) / Fraction(charge.event.noise_stddev) ** 2
            for charge in charges
            if charge.event.account == account
        ),
        Fraction(0),
    )


def delta_of(mu: float, epsilon: float) -> float:
    """What mu-GDP means at epsilon. Source: Dong, Roth and Su 2022, Corollary 1."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


# What a run leaves behind


@pytest.mark.parametrize("sites", SITES)
def test_a_run_leaves_its_files(runs: Callable[[int], Finished], sites: int) -> None:
    run = runs(sites)
    names = {str(path.relative_to(run.folder)) for path in run.folder.glob("**/*") if path.is_file()}
    expected = {
        "study.lock.yaml",
        "rounds.jsonl",
        "synthetic.csv",
        "evaluation.json",
        "certificate.json",
        "generator/generator.json",
        "generator/generator.safetensors",
        "checkpoints/step-00001.safetensors",
        *(f"ledger/site_{number + 1:02d}.jsonl" for number in range(sites)),
    }
    assert expected <= names
    assert len(run.sites) == sites
    assert not [name for name in names if name.endswith((".part", ".pkl", ".pickle"))]


def test_every_json_file_is_without_nan_and_every_line_of_rounds_is_a_step(runs: Callable[[int], Finished]) -> None:
    run = runs(7)
    for path in run.folder.glob("**/*.json"):
        read_json(path)
    lines = (run.folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == list(STEPS)
    shares = [json.loads(line)["budget_used"] for line in lines]
    assert shares == sorted(shares)
    assert 0.99 < shares[-1] <= 1


def test_the_result_on_stdout_is_one_json_object(runs: Callable[[int], Finished]) -> None:
    run = runs(2)
    result = json.loads(run.result.stdout)
    assert result["folder"] == str(run.folder)
    assert result["guarantee"] == run.certificate["guarantee"]
    assert result["utility"] == read_json(run.folder / "evaluation.json")["utility"]


def test_the_files_that_the_certificate_lists_have_the_sums_that_it_states(runs: Callable[[int], Finished]) -> None:
    run = runs(7)
    files = run.certificate["files"]
    assert {"synthetic.csv", "generator/generator.safetensors"} <= set(files)
    for name, digest in files.items():
        assert hashlib.sha256((run.folder / name).read_bytes()).hexdigest() == digest


def test_no_key_of_a_unit_is_in_what_a_run_leaves_or_prints(runs: Callable[[int], Finished]) -> None:
    run = runs(7)
    keys = people()["person"].unique()
    written = [path.read_bytes() for path in run.folder.glob("**/*") if path.is_file()]
    printed = run.result.output.encode()
    assert not [key for key in keys if any(key.encode() in body for body in [*written, printed])]
    # The same search finds them where they must be: four units in five are at sites.
    tables = b"".join(path.read_bytes() for path in run.tables.glob("*/table.csv"))
    assert sum(key.encode() in tables for key in keys) == UNITS * 4 // 5


def test_a_simulated_sites_rows_are_gone_when_the_run_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    assert invoke(tmp_path / "run", "--sites", "2").exit_code == 0
    left = [path for path in (tmp_path / "scratch").glob("**/*") if path.is_file() and b"KEY" in path.read_bytes()]
    assert not left


# The table


@pytest.mark.parametrize("sites", SITES)
def test_the_synthetic_table_is_one_that_the_study_accepts(runs: Callable[[int], Finished], sites: int) -> None:
    run = runs(sites)
    text = pd.read_csv(run.folder / "synthetic.csv", dtype=str, keep_default_na=False)
    assert list(text.columns) == list(run.study.columns)
    typed = parse_table(text, run.study.columns)
    assert {name: str(dtype) for name, dtype in typed.dtypes.items()} == {
        "amount": "float64",
        "visits": "Int64",
        "channel": "category",
        "outcome": "category",
    }
    assert text["amount"].str.fullmatch(r"\d+\.\d").all()
    assert text["visits"].str.fullmatch(r"\d?").all()


@pytest.mark.parametrize("sites", SITES)
def test_the_labels_of_the_synthetic_table_have_the_released_shares(
    runs: Callable[[int], Finished], sites: int
) -> None:
    run = runs(sites)
    table = pd.read_csv(run.folder / "synthetic.csv")
    released = load_file(run.folder / "generator" / "generator.safetensors")["label_counts"]
    assert len(table) == round(released.sum())
    counts = table["outcome"].value_counts().reindex(list(run.study.label_values), fill_value=0).to_numpy()
    # Whole rows, by the largest remainder: none is a row away.
    assert np.abs(counts - released / released.sum() * len(table)).max() < 1


# What was spent


@pytest.mark.parametrize("sites", SITES)
def test_a_site_spends_at_most_its_budget_and_nearly_all_of_it(runs: Callable[[int], Finished], sites: int) -> None:
    run = runs(sites)
    for site in run.sites:
        (bound,) = read_ledger(run.folder / "ledger" / f"{site}.jsonl").bounds.values()
        budget = Fraction(bound)
        # The budget itself is no more than epsilon and delta of the study allow.
        assert delta_of(float(budget) ** 0.5, EPSILON) <= DELTA
        charges = run.charges(site)
        assert {charge.request.split("/")[1]: charge.event.account for charge in charges} == RELEASES
        assert [charge.request.split("/")[1] for charge in charges] == list(RELEASES)
        for account in ("train", "holdout"):
            assert Fraction(999, 1000) * budget < exact_spend(charges, account) <= budget


@pytest.mark.parametrize("sites", SITES)
def test_certificate_ledgers_and_replies_state_the_same_events(runs: Callable[[int], Finished], sites: int) -> None:
    run = runs(sites)
    sealed: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in run.folder.glob("sites/*/replies/*"):
        reply = Reply.decode(path.read_bytes())
        sealed[reply.site].append(reply.facts["event"])
    sent: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answered in run.answers:
        if "event" in answered.reply.facts:
            sent[answered.site].append(answered.reply.facts["event"])
    assert sorted(run.certificate["sites"]) == sorted(sent) == sorted(sealed) == run.sites
    for site in run.sites:
        events = [charge.event.as_dict() for charge in run.charges(site)]
        assert run.certificate["sites"][site]["events"] == events == sent[site]
        assert sorted(map(sorted_json, sealed[site])) == sorted(map(sorted_json, events))
        assert {event["noise"] for event in events} == {"csprng"}


@pytest.mark.parametrize("sites", SITES)
def test_the_certificate_names_the_last_entry_of_every_ledger(runs: Callable[[int], Finished], sites: int) -> None:
    run = runs(sites)
    for site in run.sites:
        last = json.loads((run.folder / "ledger" / f"{site}.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        stated = Statement.from_dict(run.certificate["sites"][site]["ledger_head"])
        assert (stated.sequence, stated.hash) == (last["sequence"], last["hash"])
        assert stated.is_by(run.certificate["sites"][site]["key"])


@pytest.mark.parametrize("sites", SITES)
def test_all_others_or_of_many_some_attest_the_last_entry_of_a_ledger(
    runs: Callable[[int], Finished], sites: int
) -> None:
    entries = runs(sites).certificate["sites"]
    for site, entry in entries.items():
        attested = [Attestation.from_dict(one) for one in entry["attestations"]]
        witnesses = {one.witness for one in attested}
        assert len(attested) == len(witnesses) == min(sites - 1, MOST_WITNESSES)
        assert witnesses <= set(entries) - {site}
        for one in attested:
            assert (one.site, one.sequence, one.hash) == (
                site,
                *(entry["ledger_head"][key] for key in ("sequence", "hash")),
            )
            assert one.is_by(entries[one.witness]["key"])


@pytest.mark.parametrize("sites", SITES)
def test_the_epsilon_of_the_certificate_is_recomputed_from_the_ledgers_and_within_the_study(
    runs: Callable[[int], Finished], sites: int
) -> None:
    run = runs(sites)
    recomputed = []
    for site in run.sites:
        charges = run.charges(site)
        mu = float(max(exact_spend(charges, account) for account in ("train", "holdout"))) ** 0.5
        epsilon = brentq(lambda value, mu=mu: delta_of(mu, value) - DELTA, 0, 50, xtol=1e-13)
        stated = run.certificate["sites"][site]
        assert stated["delta"] == DELTA
        # Rounded up, by no more than a millionth.
        assert epsilon * (1 - 1e-9) <= stated["epsilon"] <= epsilon * (1 + 1e-6)
        recomputed.append(stated["epsilon"])
    guarantee = run.certificate["guarantee"]
    assert guarantee["epsilon"] == max(recomputed) <= EPSILON == guarantee["limit_epsilon"]
    assert guarantee["delta"] == DELTA
    assert run.certificate["void_because"] is None


# What was drawn


class NoNoise:
    """Noise that is none, so that a vault's sums come out as they are."""

    kind = "csprng"

    def draw(self, size: int, *, noise_stddev: float, context: str) -> np.ndarray:
        return np.zeros(size, dtype=np.int64)


def noiseless(run: Finished, site: str, folder: Path) -> Vault:
    """The vault of a simulated site, without noise and with a ledger that forbids nothing."""
    study = run.study
    table = parse_text(read_text(run.tables / site / "table.csv", study), study)
    asset = Asset(site, "rows", "", GdpAccountant(), 1e9)
    key = SigningKey.from_seed(bytes(32))
    ledger = Ledger(folder / f"{site}.jsonl", asset=asset, study=study.digest(), bound=1e9, key=key)
    secret = (run.folder / "sites" / site / "site.key").read_bytes()
    return Vault(table, None, study, secret=secret, ledger=ledger, noise=NoNoise())


def sums_of(vault: Vault, request: Request, study: Study) -> np.ndarray:
    """What a site would have sent without noise."""
    identity = {"spend": 1.0, "request": request.identity, "digest": ""}
    if request.kind == "one_way":
        return vault.one_way(**identity)[0]
    bins = unpack_bins(request.arrays, len(study.features))
    if request.kind == "tables":
        known = catalogue(len(study.measured), study.windows)
        queries = [known[number] for number in request.arrays["tables"]]
        return vault.tables(queries, request.arrays["emphasis"], bins, **identity)[0]
    if request.kind == "embedding":
        return vault.embedding(bins, **identity)[0]
    if request.kind == "monitor":
        return vault.scores(bins, request.arrays["weights"], **identity)[0]
    critic = read_critic(request, study, sizes_of(bins))
    released = vault.gradient if request.kind == "critic" else vault.verdicts
    return released(critic, bins, **identity)[0]


@pytest.fixture(scope="module")
def residuals(
    runs: Callable[[int], Finished], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, np.ndarray]]:
    """The noise that 32 sites drew, in the standard deviations that their events state; by release, then site."""
    run = runs(32)
    folder = tmp_path_factory.mktemp("noiseless")
    vaults = {site: noiseless(run, site, folder) for site in run.sites}
    drawn: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    for answered in run.answers:
        if answered.request.name in RELEASES:
            event = GaussianEvent.from_dict(answered.reply.facts["event"])
            sums = sums_of(vaults[answered.site], answered.request, run.study)
            noise = answered.reply.arrays["counts"] - sums
            assert noise.shape == (event.cells,)
            # Rounding to whole numbers adds a twelfth to the variance.
            drawn[answered.request.name][answered.site] = noise / np.sqrt(event.noise_stddev**2 + 1 / 12)
    return drawn


def assert_standard_normal(values: np.ndarray) -> None:
    """Mean 0 and variance 1, by tests that together raise a false alarm with the stated probability."""
    size, share = values.size, FALSE_ALARM / 4
    assert chi2.ppf(share, size) < float((values**2).sum()) < chi2.isf(share, size)
    assert abs(float(values.sum())) < norm.isf(share) * size**0.5


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.statistical
def test_the_noise_that_was_drawn_is_what_the_ledger_says(
    residuals: dict[str, dict[str, np.ndarray]], name: str
) -> None:
    # Noised tables decide how many bins there are, but never fewer than one a column; a verdict has 2 cells. A
    # standard deviation that is a third off is seen in so few, one that is a tenth off in the one-way tables.
    values = np.concatenate(list(residuals[name].values()))
    assert values.size >= 2 * 32
    assert_standard_normal(values)


@pytest.mark.parametrize("name", RELEASES)
@pytest.mark.statistical
def test_every_site_draws_noise_of_its_own(residuals: dict[str, dict[str, np.ndarray]], name: str) -> None:
    # Sums over sites of the same noise would have 32 times the variance; false alarm 1e-9.
    drawn = np.stack(list(residuals[name].values()))
    assert len(drawn) == 32
    assert_standard_normal(drawn.sum(axis=0) / 32**0.5)


@pytest.mark.statistical
def test_every_release_draws_noise_of_its_own(residuals: dict[str, dict[str, np.ndarray]]) -> None:
    # Cell by cell the first draws of two releases are independent; false alarm 1e-9.
    for first, second in itertools.combinations(RELEASES, 2):
        shared = min(len(next(iter(residuals[kind].values()))) for kind in (first, second))
        sums = [residuals[first][site][:shared] + residuals[second][site][:shared] for site in residuals[first]]
        assert_standard_normal(np.concatenate(sums) / 2**0.5)


# The same again


def test_the_same_seeds_give_the_same_bytes_in_test_mode_and_no_guarantee(tmp_path: Path) -> None:
    tables = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        result = invoke(tmp_path / name / "run", "--sites", "3", "--seed", "4", "--test-noise-seed", "9")
        assert result.exit_code == 0, result.stderr
        tables.append((tmp_path / name / "run" / "synthetic.csv").read_bytes())
    assert tables[0] == tables[1]
    certificate = read_json(tmp_path / "once" / "run" / "certificate.json")
    assert certificate["guarantee"] is None
    assert "test" in certificate["void_because"]
    assert json.loads(result.stdout)["guarantee"] is None


@pytest.mark.parametrize("options", [("--seed", "5"), ("--test-noise-seed", "8")], ids=" ".join)
def test_another_seed_gives_other_bytes(options: tuple[str, str], tmp_path: Path) -> None:
    tables = []
    for name, changed in (("once", ()), ("other", options)):
        (tmp_path / name).mkdir()
        chosen = {"--seed": "4", "--test-noise-seed": "9", **dict([changed] if changed else [])}
        flat = [part for pair in chosen.items() for part in pair]
        assert invoke(tmp_path / name / "run", "--sites", "2", *flat).exit_code == 0
        tables.append((tmp_path / name / "run" / "synthetic.csv").read_bytes())
    assert tables[0] != tables[1]


def test_the_seed_does_not_fix_the_noise_of_a_real_run(tmp_path: Path) -> None:
    released = []
    for name in ("once", "again"):
        (tmp_path / name).mkdir()
        assert invoke(tmp_path / name / "run", "--sites", "2", "--seed", "4").exit_code == 0
        replies = (tmp_path / name / "run" / "sites" / "site_01" / "replies").glob("*")
        released.append({path.name: Reply.decode(path.read_bytes()).arrays["counts"] for path in replies})
    # The same folder name, so the same requests by name. Some of the cells agree by chance, a small table's all may.
    assert set(released[0]) == set(released[1])
    pairs = [(counts, released[1][name]) for name, counts in released[0].items()]
    cells = np.concatenate([counts == other for counts, other in pairs if len(counts) == len(other)])
    assert len(cells) > 100
    assert np.mean(cells) < 0.5


# Interrupted, then resumed

TEST_MODE = ("--sites", "3", "--seed", "4", "--test-noise-seed", "9")


class Interrupted(Exception):  # noqa: N818 (what happens to a machine is no error)
    """The machine stops."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in test mode from end to end."""
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    assert invoke(folder, *TEST_MODE).exit_code == 0
    return folder


def interrupt(
    folder: Path,
    step: str,
    number: int,
    *,
    is_written: bool,
    options: tuple[str, ...] = TEST_MODE,
    study: str = STUDY,
) -> None:
    """A run that stops at a step: after its checkpoint is on disk, or just before."""
    record = Coordinator._record

    def stop(coordinator: Coordinator, line: dict[str, Any]) -> None:
        is_here = line["step"] == step and line.get("round", number) == number and line.get("stage", number) == number
        if is_written or not is_here:
            record(coordinator, line)
        if is_here:
            raise Interrupted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "_record", stop)
        result = invoke(folder, *options, study=study)
    assert result.exit_code != 0
    assert not (folder / "synthetic.csv").exists()


@pytest.mark.parametrize("is_written", [True, False], ids=["after its checkpoint", "before its checkpoint"])
@pytest.mark.parametrize(
    ("step", "number", "charged"),
    [
        ("one_way", 0, 1),
        ("noise", 1, 1),
        ("pairs-1", 0, 2),
        ("embedding-1", 0, 3),
        ("round", 1, 3),
        ("monitor-1", 0, 4),
        ("noise", 2, 4),
        ("pairs-2", 0, 5),
        ("critic-2-2", 0, 8),
        ("verdict-2", 0, 9),
        ("critic", 2, 9),
        ("round", 3, 9),
        ("monitor-2", 0, 10),
        ("monitor_result", 2, 10),
    ],
)
def test_a_resumed_run_spends_nothing_twice_and_ends_as_one_that_was_not_interrupted(
    tmp_path: Path, uninterrupted: Path, step: str, number: int, charged: int, *, is_written: bool
) -> None:
    interrupt(tmp_path / "run", step, number, is_written=is_written)
    ledgers = sorted((tmp_path / "run" / "ledger").glob("*.jsonl"))
    before = {path: path.read_bytes() for path in ledgers}
    assert [len(read_charges(path)) for path in ledgers] == [charged] * 3
    result = resume(tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for path in ledgers:
        assert path.read_bytes().startswith(before[path])
        assert path.read_bytes() == (uninterrupted / "ledger" / path.name).read_bytes()
    for name in ("synthetic.csv", "generator/generator.safetensors", "certificate.json", "rounds.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes(), name


@contextmanager
def refusing(name: str, rule: ExitCode) -> Iterator[None]:
    """One of the sites refuses the request of this name."""
    handle = Site.handle

    def refuse(site: Site, body: bytes) -> bytes:
        own = site._settings.site
        return refusal(own, rule) if (own, Request.decode(body).name) == ("site_02", name) else handle(site, body)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Site, "handle", refuse)
        yield


@pytest.mark.parametrize("rule", [ExitCode.BUDGET_REFUSED, ExitCode.POLICY_REFUSED])
def test_a_run_goes_on_without_a_validation_that_a_sites_policy_refuses(tmp_path: Path, rule: ExitCode) -> None:
    with refusing("monitor-2", rule):
        result = invoke(tmp_path / "run", *TEST_MODE)
    assert result.exit_code == 0, result.stderr
    assert [len(steps_of(tmp_path / "run", name)) for name in ("monitor-1", "monitor-2")] == [1, 0]
    assert steps_of(tmp_path / "run", "monitor_result")[1]["auc"] is None


def test_a_site_that_cannot_answer_now_is_asked_for_its_validation_again(tmp_path: Path, uninterrupted: Path) -> None:
    with refusing("monitor-2", ExitCode.LEDGER_INVALID):
        result = invoke(tmp_path / "run", *TEST_MODE)
    assert result.exit_code == ExitCode.LEDGER_INVALID
    assert "site site_02: refused (LEDGER_INVALID)" in result.stderr
    assert not (tmp_path / "run" / "synthetic.csv").exists()
    assert resume(tmp_path / "run").exit_code == 0
    for name in ("synthetic.csv", "certificate.json", "rounds.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes(), name


class Died(BaseException):
    """A site's process."""


@pytest.mark.parametrize(
    ("scope", "name"),
    [
        *(("shared", name) for name in ("one_way", "critic-2-2", "monitor-2")),
        *(("local", name) for name in ("pairs-2", "critic-2-2", "verdict-2")),
    ],
)
def test_an_answer_that_died_with_its_site_is_paid_once_and_given_when_the_run_is_taken_up(
    tmp_path: Path, uninterrupted: Path, own: Path, scope: str, name: str
) -> None:
    def die(replies: Replies, study: str, request: str, body: bytes) -> str:
        if request.endswith(f"/{name}"):
            raise Died
        return write(replies, study, request, body)

    study, whole = {"shared": (STUDY, uninterrupted), "local": (OWN, own)}[scope]
    write = Replies.write
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replies, "write", die)
        with pytest.raises(Died):
            invoke(tmp_path / "run", *TEST_MODE, study=study)
    assert resume(tmp_path / "run").exit_code == 0
    for file in ("synthetic.csv", "generator/generator.safetensors", "rounds.jsonl"):
        assert (tmp_path / "run" / file).read_bytes() == (whole / file).read_bytes(), file
    for ledger in sorted((whole / "ledger").iterdir()):
        assert read_charges(tmp_path / "run" / "ledger" / ledger.name) == read_charges(ledger)


def test_a_resumed_run_uses_the_replies_that_were_sealed_and_draws_no_fresh_noise(tmp_path: Path) -> None:
    # Real noise: a second draw would not agree with the first.
    interrupt(tmp_path / "run", "pairs-1", 0, is_written=False, options=("--sites", "3"))
    sealed = {path: path.read_bytes() for path in (tmp_path / "run" / "sites").glob("*/replies/*")}
    assert len(sealed) == 6
    assert resume(tmp_path / "run").exit_code == 0
    assert all(path.read_bytes() == body for path, body in sealed.items())
    for ledger in (tmp_path / "run" / "ledger").glob("*.jsonl"):
        assert len(read_charges(ledger)) == len(RELEASES)


def test_a_run_that_is_over_is_resumed_without_asking_for_anything(tmp_path: Path) -> None:
    assert invoke(tmp_path / "run", *TEST_MODE).exit_code == 0

    def files() -> dict[Path, bytes]:
        """All but the journal, which says that it was looked at again."""
        found = (path for path in (tmp_path / "run").glob("**/*") if path.is_file())
        return {path: path.read_bytes() for path in found if path.name != "events.jsonl"}

    before = files()
    assert resume(tmp_path / "run").exit_code == 0
    assert files() == before


def test_the_folder_of_a_run_is_not_taken_for_another(tmp_path: Path) -> None:
    interrupt(tmp_path / "run", "pairs-1", 0, is_written=True)
    ledgers = {path: path.read_bytes() for path in (tmp_path / "run" / "ledger").glob("*")}
    assert invoke(tmp_path / "run", *TEST_MODE, "--epsilon", "2").exit_code == 50
    lock = tmp_path / "run" / "study.lock.yaml"
    lock.write_text(lock.read_text(encoding="utf-8").replace("epsilon: 1.0", "epsilon: 2.0"), encoding="utf-8")
    result = resume(tmp_path / "run")
    assert result.exit_code == 51
    assert "belongs to another" in result.stderr
    assert {path: path.read_bytes() for path in (tmp_path / "run" / "ledger").glob("*")} == ledgers


# Rounds in which nobody trains

ROUGH = STUDY.replace("{semantic: 0.5, neural: 0.5}", "{semantic: 0, neural: 0}").replace("count: 4", "count: 8")
"""Of tables alone, and more rounds than so little budget needs."""
LITTLE = ("--sites", "3", "--seed", "4", "--test-noise-seed", "4", "--epsilon", "0.1")
BEGINS = (1, 3)
"""First round of each stage."""
RESTED = (2, 4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def rested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose releases are fitted after the first round of each stage."""
    folder = tmp_path_factory.mktemp("rested") / "run"
    result = invoke(folder, *LITTLE, study=ROUGH)
    assert result.exit_code == 0, result.stderr
    return folder


def steps_of(folder: Path, step: str) -> list[dict[str, Any]]:
    """Lines of rounds.jsonl of one kind."""
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return [found for line in lines if (found := json.loads(line))["step"] == step]


def rounds_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The lines of a run's rounds, by their numbers."""
    return {line["round"]: line for line in steps_of(folder, "round")}


def generators_of(folder: Path) -> dict[int, dict[str, bytes]]:
    """Parameters of a run's generator and of its average after each round, from the checkpoints."""
    found = {}
    lines = (folder / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if json.loads(line)["step"] == "round":
            arrays = load_file(folder / "checkpoints" / f"step-{number:05d}.safetensors")
            parts = ("generator.", "averaged.")
            found[json.loads(line)["round"]] = {
                name: array.tobytes() for name, array in arrays.items() if name.startswith(parts)
            }
    return found


def test_nobody_trains_once_the_releases_are_fitted_and_all_do_again_after_a_measurement(rested: Path) -> None:
    rounds = rounds_of(rested)
    assert tuple(number for number, line in rounds.items() if not line["trainers"]) == RESTED
    for number, line in rounds.items():
        assert number in (*BEGINS, *RESTED)
        assert len(line["trainers"]) == (0 if number in RESTED else 2)
        # The round before says so.
        assert number in BEGINS or max(rounds[number - 1]["losses"].values()) <= 1


def test_a_round_without_trainers_moves_nothing(rested: Path) -> None:
    rounds, generators = rounds_of(rested), generators_of(rested)
    assert {name.split(".")[0] for name in generators[1]} == {"generator", "averaged"}
    for number in range(2, 9):
        same = [generators[number][name] == before for name, before in generators[number - 1].items()]
        assert all(same) if number in RESTED else not any(same), number
        if number in RESTED:
            assert rounds[number]["losses"] == rounds[number - 1]["losses"]
            assert rounds[number]["loss"] == rounds[number - 1]["loss"]


@pytest.mark.parametrize(
    ("seed", "semantic", "more", "less"),
    [(5, 0.5, "semantic", "marginals"), (34, 0, "statistical by class", "statistical")],
)
def test_rounds_train_while_a_critic_says_more_than_noise_would(
    tmp_path: Path, seed: int, semantic: float, more: str, less: str
) -> None:
    study = ROUGH.replace("{semantic: 0, neural: 0}", f"{{semantic: {semantic}, neural: 0}}")
    options = ("--sites", "3", "--seed", "4", "--test-noise-seed", str(seed), "--epsilon", "0.1")
    assert invoke(tmp_path / "run", *options, study=study).exit_code == 0
    rounds = rounds_of(tmp_path / "run")
    assert len(rounds[2]["trainers"]) == 2
    # One is enough.
    assert rounds[1]["losses"][less] <= 1 < rounds[1]["losses"][more]


def test_a_stage_that_began_anew_is_resumed_after_a_step_of_its_critic(tmp_path: Path) -> None:
    study = ROUGH.replace("{semantic: 0, neural: 0}", "{semantic: 0, neural: 0.5}").replace("count: 8", "count: 4")
    for name in ("whole", "resumed"):
        (tmp_path / name).mkdir()
    whole = tmp_path / "whole" / "run"
    assert invoke(whole, *LITTLE, study=study).exit_code == 0
    assert max(rounds_of(whole)[1]["losses"].values()) <= 1
    steps = [json.loads(line)["step"] for line in (whole / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    fitted, begun = (
        load_file(whole / "checkpoints" / f"step-{number:05d}.safetensors")
        for number in (steps.index("round") + 1, steps.index("critic-2-1") + 1)
    )
    assert all((fitted[name] != begun[name]).any() for name in fitted if name.startswith("generator.heads."))
    interrupt(tmp_path / "resumed" / "run", "critic-2-1", 0, is_written=True, options=LITTLE, study=study)
    assert resume(tmp_path / "resumed" / "run").exit_code == 0
    for name in ("rounds.jsonl", "generator/generator.safetensors", "synthetic.csv"):
        assert (tmp_path / "whole/run" / name).read_bytes() == (tmp_path / "resumed/run" / name).read_bytes(), name


THREE_STAGES = (
    STUDY.replace("noise: {rounds: 2}", "noise: {rounds: 3}")
    .replace("rounds: {count: 4", "rounds: {count: 6")
    .replace("semantic: 0.5, neural: 0.5", "semantic: 0.25, neural: 0.75")
)
STAGES = tuple(f"{name}-{stage}" for stage in (1, 2, 3) for name in ("pairs", "embedding"))


def spends_of(folder: Path) -> dict[str, Fraction]:
    """What each release of the training units cost the first site, as a share of its budget."""
    path = folder / "ledger" / "site_01.jsonl"
    (bound,) = read_ledger(path).bounds.values()
    charges = [charge for charge in read_charges(path) if charge.event.account == "train"]
    return {charge.request.split("/")[1]: exact_spend([charge], "train") / Fraction(bound) for charge in charges}


def judged(monkeypatch: pytest.MonkeyPatch, *, weight: float, error: float = 0.01) -> None:
    """All verdicts on a critic, and how far they open its gate."""
    monkeypatch.setattr(
        "server.rounds.gate", lambda found, heads: Opening((weight,) * heads, (0.8,) * heads, (0.3,) * heads)
    )
    verdict = Verdict(accuracy=0.7, error=error, passing=0.9, passed=0.5)
    monkeypatch.setattr("server.rounds.verdicts_on", lambda counts, variance, fakes: [verdict] * len(counts))


@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["heard", "shut"])
def test_what_a_critic_behind_a_shut_gate_would_have_spent_goes_to_tables_and_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    judged(monkeypatch, weight=weight)
    lasts: list[bool] = []

    def told(*args: Any, last: bool, **options: Any) -> None:
        lasts.append(last)
        improve(*args, last=last, **options)

    monkeypatch.setattr("server.rounds.improve", told)
    assert invoke(tmp_path / "run", *TEST_MODE, study=THREE_STAGES).exit_code == 0
    spends = spends_of(tmp_path / "run")
    is_heard = weight > 0
    # Of two steps a stage.
    assert lasts == [False, True] * (2 if is_heard else 1)
    # Half of the fakes pass, and nine of ten real units.
    assert steps_of(tmp_path / "run", "noise")[-1]["inputs"]["critic_accuracy"] == pytest.approx(0.9)
    assert {name for name in spends if name.startswith("critic")} == {
        f"critic-{stage}-{step}" for stage in ((2, 3) if is_heard else (2,)) for step in (1, 2)
    }
    shares = {line["stage"]: Fraction(line["share"]) for line in steps_of(tmp_path / "run", "noise")}
    # By weight 1, 0.25 and 0.75 of what one-way tables leave, and the critic's over the last two stages.
    rest, left = 1 - spends["one_way"], {1: 0, 2: 0, 3: 0 if is_heard else shares[3] / (1 - shares[1]) * 3 / 8}
    expected = {
        f"{name}-{stage}": rest * own * (shares[stage] + left[stage] / Fraction(5, 8))
        for name, own in (("pairs", Fraction(1, 2)), ("embedding", Fraction(1, 8)))
        for stage in (1, 2, 3)
    }
    assert {name: float(spends[name]) for name in STAGES} == pytest.approx(
        {name: float(value) for name, value in expected.items()}, rel=1e-4
    )
    assert 0.999 < sum(spends.values()) <= 1


@pytest.mark.parametrize("weight", [0.5, 0.0], ids=["heard", "shut"])
def test_no_measurement_spends_more_of_any_discriminators_budget_than_its_floor_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    judged(monkeypatch, weight=weight)
    study = THREE_STAGES.replace("noise: {rounds: 3}", "noise: {rounds: 3, max_share: 0.375}")
    assert invoke(tmp_path / "run", *TEST_MODE, study=study).exit_code == 0
    spends = spends_of(tmp_path / "run")
    rest = 1 - spends["one_way"]
    # By weight 1, 0.25 and 0.75. What a critic leaves that is asked no more would be .55 of the others' budgets.
    own = {"pairs": Fraction(1, 2), "embedding": Fraction(1, 8), "critic": Fraction(3, 8)}
    asked = {
        (name, stage): float(
            sum(spend for one, spend in spends.items() if one.startswith(f"{name}-{stage}")) / rest / share
        )
        for name, share in own.items()
        for stage in (1, 2, 3)
    }
    assert max(asked.values()) <= 0.375
    assert asked["pairs", 3] == pytest.approx(0.375, rel=1e-4)
    assert asked["critic", 2] == pytest.approx(0.375, rel=1e-4)
    assert asked["critic", 3] == pytest.approx(0.375 if weight else 0, rel=1e-4)


@pytest.mark.parametrize(("error", "heard"), [(0.025, 0.9), (0.026, None)])
def test_an_accuracy_that_noise_hides_moves_no_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, heard: float | None
) -> None:
    judged(monkeypatch, weight=0.5, error=error)
    assert invoke(tmp_path / "run", *TEST_MODE, study=THREE_STAGES).exit_code == 0
    assert steps_of(tmp_path / "run", "noise")[-1]["inputs"]["critic_accuracy"] == (heard and pytest.approx(heard))


def test_an_accuracy_is_heard_once_after_each_measurement_of_a_critic_and_not_when_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(monkeypatch, weight=0.0)
    study = THREE_STAGES.replace("noise: {rounds: 3}", "noise: {rounds: 6}").replace("count: 6", "count: 12")
    assert invoke(tmp_path / "run", *TEST_MODE, study=study).exit_code == 0
    measured = {name.split("-")[1] for name in spends_of(tmp_path / "run") if name.startswith("critic")}
    assert measured == {"2", "3"}
    heard = [line["inputs"]["critic_accuracy"] for line in steps_of(tmp_path / "run", "noise")]
    assert heard == [None, None, pytest.approx(0.9), pytest.approx(0.9), None, None]


def test_a_run_whose_critic_is_heard_is_resumed_with_the_same_ear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "server.rounds.gate", lambda found, heads: Opening((0.5,) * heads, (0.6,) * heads, (0.2,) * heads)
    )
    trained: list[Opening] = []
    make = Adversary.__init__

    def told(self: Adversary, critic: Any, opening: Opening) -> None:
        trained.append(opening)
        make(self, critic, opening)

    monkeypatch.setattr(Adversary, "__init__", told)
    interrupt(tmp_path / "run", "round", 3, is_written=True, study=THREE_STAGES)
    first = set(trained)
    trained.clear()
    assert resume(tmp_path / "run").exit_code == 0
    # At the sites and at the coordinator, before and after.
    assert first == set(trained) == {Opening((0.5,), (0.6,), (0.2,))}


def test_a_run_whose_critic_fell_silent_is_resumed_for_the_same_shares(tmp_path: Path) -> None:
    study = THREE_STAGES.replace("holdout: 0.2", "holdout: 0")  # a gate that nothing opens
    whole = tmp_path / "whole" / "run"
    for folder in (whole, tmp_path / "resumed" / "run"):
        folder.parent.mkdir()
    assert invoke(whole, *TEST_MODE, study=study).exit_code == 0
    assert {step["heads"]["semantic"] for step in steps_of(whole, "critic")} == {0.0}
    interrupt(tmp_path / "resumed" / "run", "pairs-3", 0, is_written=False, study=study)
    assert resume(tmp_path / "resumed" / "run").exit_code == 0
    for name in ("ledger/site_01.jsonl", "rounds.jsonl", "synthetic.csv"):
        assert (whole / name).read_bytes() == (tmp_path / "resumed" / "run" / name).read_bytes(), name


LASTING = (
    STUDY.replace(", max_records: 2, surplus: drop", "")
    .replace("{semantic: 0.5, neural: 0.5}", "{semantic: 0, neural: 0}")
    .replace("noise: {rounds: 2}", "noise: {rounds: 1}")
    .replace("count: 4", "count: 2")
    .replace("model: {", "model: {body: attention, ")
    + """\
windows:
  layout: events
  length: 4
  time: {column: hour}
  gap: since
  channels:
    since: {type: integer, min: 0, max: 9, missing: true}
    call: {type: categorical, categories: [short, long]}
"""
)
"""With windows, whose hours are no whole numbers while gaps are: many gaps are 0, and ties are refused."""


def test_a_run_with_windows_and_attention_is_resumed_and_publishes_what_its_study_reads(tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole" / "run", tmp_path / "resumed" / "run"
    for folder in (whole, resumed):
        folder.parent.mkdir()
    result = invoke(whole, *TEST_MODE, study=LASTING)
    assert result.exit_code == 0, result.stderr
    interrupt(resumed, "round", 1, is_written=True, options=TEST_MODE, study=LASTING)
    assert resume(resumed).exit_code == 0
    names = ("synthetic.csv", "synthetic-windows.csv", "generator/generator.safetensors", "generator/generator.json")
    for name in (*names, "certificate.json", "rounds.jsonl"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert set(names) <= set(read_json(whole / "certificate.json")["files"])
    assert read_json(whole / "generator/generator.json")["shape"]["body"] == "attention"
    assert any("self_attn" in name for name in load_file(whole / "generator/generator.safetensors"))
    study = load_study(whole / "study.lock.yaml")
    records = parse_text(read_text(whole / "synthetic.csv", study), study)
    values, lengths = read_windows(records, read_series_text(whole / "synthetic-windows.csv", study), study)
    assert (values[lengths > 1, 1, 0] == 0).any()


def test_every_round_tells_what_each_measured_critic_says(runs: Callable[[int], Finished], rested: Path) -> None:
    for folder, names in (
        (runs(2).folder, {"marginals", "statistical", "statistical by class", "semantic"}),
        (rested, {"marginals", "statistical", "statistical by class"}),
    ):
        for line in rounds_of(folder).values():
            assert set(line["losses"]) == set(line["weights"]) == names
            assert np.isfinite(list(line["losses"].values())).all()
            # All together is a mean of them.
            assert min(line["losses"].values()) - 1e-6 <= line["loss"] <= max(line["losses"].values()) + 1e-6


def test_every_round_tells_which_critics_are_heard(rested: Path) -> None:
    for number, line in rounds_of(rested).items():
        heard = {name for name, weight in line["weights"].items() if weight}
        assert heard == ({MARGINALS} if number + 1 in RESTED else heard)
        assert all(line["losses"][name] > 1 for name in heard - {MARGINALS})
    assert {name for line in rounds_of(rested).values() for name, weight in line["weights"].items() if weight}


def test_a_head_whose_gate_is_open_has_its_weight_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "server.rounds.gate", lambda found, heads: Opening((0.5,) * heads, (1.0,) * heads, (0.0,) * heads)
    )
    assert invoke(tmp_path / "run", *TEST_MODE, study=THREE_STAGES).exit_code == 0
    weights = [line["weights"].get("neural semantic") for line in rounds_of(tmp_path / "run").values()]
    begins = next(at for at, weight in enumerate(weights) if weight is not None)
    assert 0 < begins < len(weights)
    assert all(weight > 0 for weight in weights[begins:])


def test_quality_moves_the_noise_of_a_run_from_its_second_measurement_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {}
    compared: list[tuple[Targets, Generator]] = []
    for name, ratio in (("near", 0.1), ("far", 1.0)):

        def told(targets: Targets, generator: Generator, *_: Any, ratio: float = ratio, **__: Any) -> Distance:
            compared.append((targets, copy.deepcopy(generator)))
            return Distance(ratio if len(compared) % 2 else 1.0, 0.1)

        monkeypatch.setattr("server.learner.frechet_distance", told)
        (tmp_path / name).mkdir()
        assert invoke(tmp_path / name / "run", *TEST_MODE, study=THREE_STAGES).exit_code == 0
        lines = steps_of(tmp_path / name / "run", "noise")
        assert [line["inputs"]["frechet_ratio"] for line in lines] == [1.0, ratio, ratio]
        shares[name] = [line["share"] for line in lines]
    assert shares["near"][0] == shares["far"][0]
    assert shares["near"][1] > 1.03 * shares["far"][1]
    # Of either run and before either measurement: where it is, where it began, and both beside all that is released.
    assert len(compared) == 8
    biases = [generator.heads.bias.detach().numpy() for _, generator in compared]
    for at in (0, 4):
        assert np.array_equal(biases[at + 1], biases[at + 3])
        assert not any(np.array_equal(biases[at + 1], biases[at + now]) for now in (0, 2))
        assert compared[at][0] is compared[at + 1][0]
        assert compared[at + 2][0] is compared[at + 3][0]
        assert compared[at][0] is not compared[at + 2][0]


@pytest.mark.parametrize("is_written", [True, False], ids=["after its checkpoint", "before its checkpoint"])
@pytest.mark.parametrize(("step", "number"), [("round", 1), ("round", 2), ("noise", 2), ("pairs-2", 0), ("round", 5)])
def test_a_run_resumed_between_rounds_without_trainers_ends_as_one_that_was_not_interrupted(
    tmp_path: Path, rested: Path, step: str, number: int, *, is_written: bool
) -> None:
    interrupt(tmp_path / "run", step, number, is_written=is_written, options=LITTLE, study=ROUGH)
    result = resume(tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for name in ("synthetic.csv", "generator/generator.safetensors", "certificate.json", "rounds.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (rested / name).read_bytes(), name


def test_where_discriminators_stay_at_the_sites_every_round_trains(tmp_path: Path) -> None:
    local = ROUGH.replace("{semantic: 0, neural: 0}", "{semantic: 0, neural: 0, scope: local}")
    assert invoke(tmp_path / "run", *LITTLE, study=local).exit_code == 0
    for line in rounds_of(tmp_path / "run").values():
        assert len(line["trainers"]) == 2
        assert set(line["losses"]) == {"marginals"}


def test_where_discriminators_stay_at_the_sites_all_steps_are_taken_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: list[int] = []
    there: list[int] = []
    train, handle = Learner.train, Site.handle

    def refining(learner: Learner, stretch: Stretch) -> float:
        here.append(stretch.steps)
        return train(learner, stretch)

    def answering(site: Site, body: bytes) -> bytes:
        request = Request.decode(body)
        if request.kind == "train":
            there.append(request.options["steps"])
        return handle(site, body)

    monkeypatch.setattr(Learner, "train", refining)
    monkeypatch.setattr(Site, "handle", answering)
    for name, study in (("shared", STUDY), ("local", OWN)):
        (tmp_path / name).mkdir()
        assert invoke(tmp_path / name / "run", *TEST_MODE, study=study).exit_code == 0
        expected = ({2}, {3}) if name == "shared" else ({2 + 3}, {0})
        assert (set(there), set(here)) == expected
        here.clear()
        there.clear()


OWN = STUDY.replace("neural: 0.5}", "neural: 0.5, scope: local}")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose discriminators stay at the sites, neural ones too."""
    folder = tmp_path_factory.mktemp("own") / "run"
    result = invoke(folder, *TEST_MODE, study=OWN)
    assert result.exit_code == 0, result.stderr
    return folder


def test_critics_that_stay_at_the_sites_are_paid_for_and_only_that_is_told(own: Path, uninterrupted: Path) -> None:
    for site in ("site_01", "site_02", "site_03"):
        charges, shared = (read_charges(run / "ledger" / f"{site}.jsonl") for run in (own, uninterrupted))
        assert [charge.request.split("/")[1] for charge in charges] == list(RELEASES)
        assert [charge.event for charge in charges] == [charge.event for charge in shared]
    arrays = load_file(max((own / "checkpoints").glob("*.safetensors")))
    for name in RELEASES:
        counts = arrays[f"release.{name}"]
        assert counts.any() == (name.startswith(("one_way", "monitor"))), name
    assert not any(name.startswith("critic") for name in arrays)


@pytest.mark.parametrize("is_written", [True, False], ids=["after its checkpoint", "before its checkpoint"])
@pytest.mark.parametrize("step", ["critic-2-1", "critic-2-2", "verdict-2"])
def test_a_run_whose_critics_stay_at_the_sites_goes_on_as_if_it_had_not_been_interrupted(
    tmp_path: Path, own: Path, step: str, *, is_written: bool
) -> None:
    interrupt(tmp_path / "run", step, 0, is_written=is_written, study=OWN)
    result = resume(tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    for name in ("synthetic.csv", "certificate.json", "rounds.jsonl", "ledger/site_01.jsonl"):
        assert (tmp_path / "run" / name).read_bytes() == (own / name).read_bytes(), name


# Ledgers that are not the newest


def roll_back(run: Path, site: str, entries: int) -> None:
    """Leave a site with what a backup of an earlier moment held: fewer entries, no replies, no heads of others."""
    ledger = run / "ledger" / f"{site}.jsonl"
    ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:-entries]))
    (run / "sites" / site / "witness.json").unlink()
    shutil.rmtree(run / "sites" / site / "replies")  # with them there, the site itself would notice


def test_a_coordinator_does_not_go_on_with_a_site_whose_ledger_went_back(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    roll_back(tmp_path / "run", "site_02", 5)
    result = resume(tmp_path / "run")
    assert result.exit_code == 53
    assert "site site_02: its ledger lacks entries" in result.stderr


def test_one_entry_that_a_ledger_lacks_is_enough(tmp_path: Path, uninterrupted: Path) -> None:
    # The last one, a seal: the coordinator's checkpoint is older, its peers are not.
    shutil.copytree(uninterrupted, tmp_path / "run")
    roll_back(tmp_path / "run", "site_02", 1)
    assert resume(tmp_path / "run").exit_code == 22


def test_a_site_whose_ledger_went_back_learns_it_from_its_peers(tmp_path: Path, uninterrupted: Path) -> None:
    shutil.copytree(uninterrupted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")  # a coordinator that remembers nothing, or says so
    roll_back(tmp_path / "run", "site_02", 5)
    before = (tmp_path / "run" / "ledger" / "site_02.jsonl").read_bytes()
    result = resume(tmp_path / "run")
    assert result.exit_code == 22
    assert "site site_02: refused" in result.stderr
    assert (tmp_path / "run" / "ledger" / "site_02.jsonl").read_bytes() == before


def test_a_site_that_starts_anew_within_a_run_is_confirmed_anew(
    tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle, refused = Site.handle, []

    def restarting(site: Site, body: bytes) -> bytes:
        request = Request.decode(body)
        if request.name == "pairs-2" and site._settings.site == "site_02" and not refused:
            site.__init__(site._settings, noise=site._noise, device=site._device)  # type: ignore[misc]
            refused.append(Reply.decode(handle(site, body)).refused)
        return handle(site, body)

    monkeypatch.setattr(Site, "handle", restarting)
    assert invoke(tmp_path / "run", *TEST_MODE).exit_code == 0
    assert refused == ["UNCONFIRMED"]
    for name in ("synthetic.csv", "certificate.json"):
        assert (tmp_path / "run" / name).read_bytes() == (uninterrupted / name).read_bytes()


# Another accountant

SAMPLED = STUDY.replace("holdout: 0.2}", "holdout: 0.2, accountant: rdp}").replace(
    "critic: {", "critic: {sampling: 0.1, "
)


def test_a_study_that_samples_units_is_accounted_at_one_renyi_order(tmp_path: Path) -> None:
    result = invoke(tmp_path / "run", "--sites", "2", study=SAMPLED)
    assert result.exit_code == 0, result.stderr
    certificate = read_json(tmp_path / "run" / "certificate.json")
    assert 0.99 < certificate["guarantee"]["epsilon"] <= EPSILON
    for site in ("site_01", "site_02"):
        book = read_ledger(tmp_path / "run" / "ledger" / f"{site}.jsonl")
        assert certificate["sites"][site]["accountant"] == book.asset["accountant"]
        assert book.asset["accountant"]["kind"] == "rdp"
        (charges,) = book.charges.values()
        sampled = {request.split("/")[1]: charge.event.sampling for request, charge in charges.items()}
        assert sampled == {name: 0.1 if name.startswith("critic") else 1.0 for name in RELEASES}
