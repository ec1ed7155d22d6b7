"""What `preview` says would leave is what leaves in a run: as many messages, of such sizes, for such shares."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from client.cli import app
from client.door import Door
from client.policy import SitePolicy, load_site_settings, read_policy, today_utc
from client.preview import NEVER, Preview, preview
from client.simulated_rows import simulate_rows
from client.simulated_site import make_site_folder
from client.site import open_site
from common.privacy.ledger import read_ledger
from common.study import load_study, parse_study
from common.wire.messages import Request
from server.rounds import Coordinator
from simulations.federation import credentials_of
from tests.client.homes import PRIVACY, STUDY, WINDOWED, hidden, local, make_home

SITES = ("north", "south")
SMALL: dict[str, Any] = {"rounds": {"count": 2, "local_steps": 1, "refine_steps": 0}, "noise": {"rounds": 2}}
STUDIES: dict[str, Mapping[str, Any]] = {
    "tables": STUDY,
    "all": {**STUDY, "discriminators": {"semantic": 1, "neural": 1}, "critic": {"width": 4, "steps": 2}},
    "windows": {**WINDOWED, "privacy": {**PRIVACY, "holdout": 0}},
    "masked": hidden(STUDY),
    "local": local(STUDY),
}


class Recorded:
    """An exchange that counts what sites send."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self.doors = doors
        self.times: Counter[tuple[str, str]] = Counter()
        self.sizes: dict[tuple[str, str], int] = {}

    def sites(self) -> list[str]:
        return list(self.doors)

    def ask(self, bodies: Mapping[str, bytes]) -> dict[str, bytes]:
        answers = {site: self.doors[site].answer(envelope) for site, envelope in bodies.items()}
        for site, envelope in bodies.items():
            request = Request.decode(envelope[envelope.index(b'\0{"__metadata__"') - 7 :])
            self.times[site, request.kind] += 1
            known = self.sizes.get((site, request.kind), 0)
            self.sizes[site, request.kind] = max(known, len(answers[site]))
        return answers


@pytest.mark.parametrize("name", STUDIES)
def test_a_run_sends_what_was_shown(name: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDIES[name], **SMALL}, sort_keys=False))
    study = load_study(path)
    doors, settings = {}, {}
    for at, site in enumerate(SITES):
        rows = simulate_rows(study, units=60, seed=at)
        made = make_site_folder(
            site,
            path,
            study,
            rows.written(rows.unit_of_record, study),
            private=tmp_path / "private",
            kept=tmp_path / "kept",
            seed=0,
            peers=set(SITES) - {site},
        )
        settings[site] = load_site_settings(made.settings)
        doors[site] = Door(open_site(made.settings))
    own = settings["north"]
    policy = read_policy(own.policy)
    shown = preview(study, SitePolicy(own, policy, study, today=today_utc), site="north", peers=1)

    exchange = Recorded(doors)
    Coordinator(
        study,
        folder=tmp_path / "run",
        run="run",
        seed=0,
        credentials=credentials_of(SITES, seed=0),
        device=torch.device("cpu"),
        on_step=lambda _: None,
    ).run(exchange)

    times: Counter[str] = Counter()
    for line in shown.lines:
        times[line.kind.partition(":")[0]] += line.times
    sent_times = {kind: number for (site, kind), number in exchange.times.items() if site == "north"}
    assert set(times) == set(sent_times)
    assert 0 < sent_times.pop("train") <= times.pop("train")  # fewer once the releases are fitted
    assert times == sent_times
    for line in shown.lines:
        sent = exchange.sizes["north", line.kind.partition(":")[0]]
        if line.is_exact:
            assert sent <= line.bytes <= 2 * sent
    # Shares of each account: what was charged is what was shown.
    book = read_ledger(own.ledger)
    bound = book.bounds[study.digest()]
    for account in ("train", "holdout"):
        share = sum(line.share for line in shown.lines if line.account == account)
        assert float(book.spent[study.digest(), account]) == pytest.approx(share * bound, rel=1e-6)


def previewed(tmp_path: Path, study: Mapping[str, Any], **policy: Any) -> Preview:
    home = make_home(tmp_path / "north", study=study, **policy)
    settings = load_site_settings(home.folder / "site.yaml")
    bound = SitePolicy(settings, read_policy(settings.policy), home.study, today=today_utc)
    return preview(home.study, bound, site="north", peers=len(policy.get("peers", ())))


def lines_of(found: Preview) -> dict[str, Any]:
    return {line.kind: line for line in found.lines}


def test_who_reads_a_release_follows_from_the_study(tmp_path: Path) -> None:
    plain = lines_of(previewed(tmp_path / "a", STUDY))
    assert "coordinator" in plain["one_way"].readers
    masked = lines_of(previewed(tmp_path / "b", hidden(STUDY), peers=("east", "west")))
    assert masked["one_way"].readers.startswith("nobody: masked")
    assert masked["masks"].share == 0
    kept = lines_of(previewed(tmp_path / "c", local(STUDY)))
    assert (kept["tables: pairs"].readers, plain["tables: pairs"].readers) == ("nobody", plain["one_way"].readers)
    assert kept["tables: pairs"].bytes < plain["tables: pairs"].bytes
    assert "this site's own" in kept["train"].says


def test_the_noise_is_that_of_the_sites_own_budget_and_floor(tmp_path: Path) -> None:
    plain = lines_of(previewed(tmp_path / "a", STUDY))
    narrowed = previewed(tmp_path / "b", STUDY, max_epsilon=0.1)
    assert (narrowed.epsilon, narrowed.delta) == (0.1, 1e-5)
    assert lines_of(narrowed)["one_way"].noise > 5 * plain["one_way"].noise
    floored = lines_of(previewed(tmp_path / "c", STUDY, least_noise=100))
    assert floored["one_way"].noise == pytest.approx(100)


def test_the_command_reads_no_row_and_says_what_never_leaves(tmp_path: Path) -> None:
    home = make_home(tmp_path / "north")
    (home.folder / "table.csv").unlink()
    options = ["--site", "north", "--sites", str(tmp_path)]
    result = CliRunner().invoke(app, [*options, "preview"], env={"COLUMNS": "220"})
    assert result.exit_code == 0, result.output
    for part in (*NEVER, "one_way", "35% train", "100% holdout", "epsilon 1 at delta 1e-05"):
        assert part in result.stdout
    found = json.loads(CliRunner().invoke(app, [*options, "preview", "--json"]).stdout)
    for line in found["lines"]:
        assert line["says"] in result.stdout
        assert line["readers"] in result.stdout
    assert found["digest"] == parse_study(dict(STUDY), source="test").digest()
    assert [line["kind"] for line in found["lines"]][-1] == "train"
    assert not home.ledger.exists()
