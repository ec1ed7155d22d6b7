"""How a site opens a kit, enrols, joins and rotates: what is refused, and that what is refused changes nothing."""

import contextlib
import io
import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_ssh_private_key
from cryptography.x509 import SubjectAlternativeName, load_pem_x509_certificate
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner, Result

from client.cli import app
from client.enrolment import _PEERS, check_certificate, enrol, join, open_kit, rotate
from client.keys import identity, make_identity, make_tls_key, make_transport_key, tls_key, transport_key
from client.policy import PolicyFile, SiteSettings, load_policy, load_site_settings, read_policy, sign_policy
from common.errors import ExitCode, MembershipError, PolicyError, PrivShareError, StudyError
from common.privacy.signatures import SigningKey
from common.wire.membership import MAX_PAPER, Admission, Kit, check_enrolment, sha256, spaced
from server.provision import (
    _issue_server,
    _leaf,
    _named,
    _new_key,
    _pem,
    _read_authority,
    coordinator_key,
    read_enrolment,
    revoke,
)
from tests.client.homes import write_yaml
from tests.members import ADDRESS, HOUR, NOW, Federation, make_federation, make_members

STRANGER = SigningKey.from_seed(bytes(32))


@pytest.fixture
def fed(tmp_path: Path) -> Federation:
    """Kits were made, and nobody has joined."""
    return make_federation(tmp_path)


@pytest.fixture
def joined(tmp_path: Path) -> Federation:
    """North and south are members; east was invited."""
    return make_members(tmp_path)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(fed: Federation, *arguments: str, site: str = "north") -> Result:
    options = ["--site", site, "--sites", str(fed.folder / "sites")]
    return CliRunner().invoke(app, [*options, *arguments], env={"COLUMNS": "200"})


def fails(result: Result, code: ExitCode) -> str:
    """The one line that a refused command ends with."""
    assert result.exit_code == code, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def inside(fed: Federation) -> dict[str, bytes]:
    """The files of north's kit."""
    with zipfile.ZipFile(fed.kit("north")) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(fed: Federation, files: Mapping[str, bytes]) -> None:
    """A kit of these files, in the place of north's."""
    with zipfile.ZipFile(fed.kit("north"), "w") as archive:
        for name, body in files.items():
            archive.writestr(name, body)


def refuses(fed: Federation) -> str:
    """Why north's kit is refused: in one line that names it."""
    with pytest.raises(MembershipError) as caught:
        open_kit(fed.kit("north"), site="north")
    assert caught.value.code == ExitCode.KIT_INVALID
    assert str(caught.value).startswith(str(fed.kit("north")))
    assert "\n" not in str(caught.value)
    assert tempfile.gettempdir() not in str(caught.value).removeprefix(str(fed.kit("north")))
    return str(caught.value).removeprefix(str(fed.kit("north")))


# --- kits


def test_a_whole_kit_is_opened(fed: Federation) -> None:
    opened = open_kit(fed.kit("north"), site="north")
    assert opened.kit == fed.kits["north"]
    assert opened.study.digest() == opened.kit.study
    assert opened.files == inside(fed)


@pytest.mark.parametrize("name", ["kit.json", "study.yaml", "ca.crt"])
def test_a_kit_with_a_file_that_was_changed_is_refused(fed: Federation, name: str) -> None:
    files = inside(fed)
    pack(fed, {**files, name: files[name] + b" "} if name != "kit.json" else {**files, name: b"{}"})
    assert name.split(".", maxsplit=1)[0] in refuses(fed)


@pytest.mark.parametrize("name", [name for name in Kit.model_fields if name not in ("schema_version", "signature")])
def test_a_kit_of_which_a_field_was_changed_is_refused(fed: Federation, name: str) -> None:
    files = inside(fed)
    data = json.loads(files["kit.json"])
    other = {"federation": "x", "site": "south", "address": "x:1", "sites": ["north"], "made": "2001-01-01"}
    data[name] = other.get(name, "0" * 64)
    body = json.dumps(data, sort_keys=True, separators=(",", ":")).encode()
    pack(fed, {**files, "kit.json": body})
    assert "signature" in refuses(fed)


def resigned(fed: Federation, **changes: Any) -> dict[str, bytes]:
    """A kit that an owner of the coordinator's key made badly."""
    kit = fed.kits["north"].model_copy(update=changes).signed(coordinator_key(fed.home))
    return {**inside(fed), "kit.json": kit.encode()}


def test_a_kit_for_another_site_is_refused(fed: Federation) -> None:
    shutil.copy(fed.kit("south"), fed.kit("north"))
    assert "site: the kit is for south" in refuses(fed)


def test_a_kit_whose_study_is_not_the_stated_one_or_not_valid_is_refused(fed: Federation) -> None:
    pack(fed, resigned(fed, study="0" * 64))
    assert "study.yaml: has another digest" in refuses(fed)
    pack(fed, resigned(fed, federation="other"))
    assert "study.yaml: has another name" in refuses(fed)
    for body in (b"name: toy\n", b"\xff", b"- 1\n", b"a: [\n", b"draft: true\n" + inside(fed)["study.yaml"]):
        pack(fed, {**resigned(fed, study_file=sha256(body)), "study.yaml": body})
        assert refuses(fed).startswith(": study.yaml:")


def test_a_kit_whose_ca_is_none_is_refused(fed: Federation) -> None:
    for body in (b"nonsense", b"\xff", (fed.home / "server.crt").read_bytes()):
        pack(fed, {**resigned(fed, ca_file=sha256(body)), "ca.crt": body})
        refuses(fed)


def test_a_zip_of_other_files_is_refused(fed: Federation) -> None:
    files = inside(fed)
    for found in (
        {},
        {name: files[name] for name in ("kit.json", "ca.crt")},
        {**files, "note.txt": b""},
        {**{name: files[name] for name in ("kit.json", "ca.crt")}, "../study.yaml": b""},
        {**{name: files[name] for name in ("kit.json", "ca.crt")}, "/study.yaml": b""},
        {**{name: files[name] for name in ("kit.json", "ca.crt")}, "kit/study.yaml": b""},
        {**files, "folder/": b""},
    ):
        pack(fed, found)
        assert "and nothing else" in refuses(fed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_holds_a_file_twice_is_refused(fed: Federation) -> None:
    with zipfile.ZipFile(fed.kit("north"), "a") as archive:
        archive.writestr("ca.crt", b"other")
    assert "and nothing else" in refuses(fed)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR])
def test_a_zip_with_something_that_is_no_plain_file_is_refused(fed: Federation, kind: int) -> None:
    files = inside(fed)
    with zipfile.ZipFile(fed.kit("north"), "w") as archive:
        for name, body in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (kind if name == "ca.crt" else stat.S_IFREG) << 16
            archive.writestr(entry, body)
    assert "ca.crt: not a plain file" in refuses(fed)


def test_a_zip_that_unpacks_to_more_than_a_paper_is_refused_whatever_it_says(fed: Federation) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, body in inside(fed).items():
            file.writestr(name, body if name != "study.yaml" else bytes(MAX_PAPER + 1))
    body = archive.getvalue()
    fed.kit("north").write_bytes(body)
    assert "study.yaml: longer" in refuses(fed)
    # The directory may lie about the size.
    fed.kit("north").write_bytes(body.replace(struct.pack("<L", MAX_PAPER + 1), struct.pack("<L", 10)))
    refuses(fed)


def test_a_zip_that_is_packed_in_another_way_is_refused(fed: Federation) -> None:
    files = inside(fed)
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(fed.kit("north"), "w", method) as archive:
            for name, body in files.items():
                archive.writestr(name, body)
        assert "packed" in refuses(fed)


def test_a_file_that_is_no_zip_is_refused(fed: Federation, tmp_path: Path) -> None:
    for body in (b"", b"nonsense", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), bytes(MAX_PAPER + 1)):
        fed.kit("north").write_bytes(body)
        refuses(fed)
    fed.kit("north").unlink()
    assert "cannot be read" in refuses(fed)
    fed.kit("north").mkdir()
    assert "cannot be read" in refuses(fed)


def test_no_damage_to_a_kit_ends_otherwise_than_in_one_line(fed: Federation) -> None:
    whole = fed.kit("north").read_bytes()
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]):
            fed.kit("north").write_bytes(damaged)
            # What is opened all the same was changed in a date or a mode, of which nothing is read.
            with contextlib.suppress(MembershipError):
                assert open_kit(fed.kit("north"), site="north").kit == fed.kits["north"]


# --- init


def csv(table: str, **others: str) -> dict[str, str]:
    """A source of files."""
    return {"type": "csv", "table": table, **others}


def test_a_site_is_set_up_with_its_own_keys_and_a_draft_of_a_policy(fed: Federation) -> None:
    (enrolment,) = fed.enrol("north")
    folder, settings = fed.folder / "sites" / "north", fed.settings("north")
    names = {"site.yaml", "study.yaml", "ca.crt", "policy.yaml", "enrolment.json"}
    keys = {f"state/{name}" for name in ("identity.pem", "transport.key", "tls.key")}
    assert set(files_of(folder)) == names | keys
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in keys} == {0o600}
    assert stat.S_IMODE((folder / "state").stat().st_mode) == 0o700
    kit = inside(fed)
    assert settings == SiteSettings(
        site="north",
        source={"type": "csv", "table": str(fed.folder / "table.csv")},
        study=folder / "study.yaml",
        policy=folder / "policy.yaml",
        ledger=folder / "ledger.jsonl",
        state=folder / "state",
        superlink=ADDRESS,
        ca=folder / "ca.crt",
    )
    assert {name: (folder / name).read_bytes() for name in ("study.yaml", "ca.crt")} == {
        name: kit[name] for name in ("study.yaml", "ca.crt")
    }
    assert read_policy(settings.policy) == PolicyFile(
        schema="privshare.policy/1",
        site="north",
        asset="main",
        approved=fed.kits["north"].study,
        coordinator=coordinator_key(fed.home).public,
        max_epsilon=1,
        max_delta=1e-5,
        total_epsilon=1,
        total_delta=1e-5,
    )
    assert not (folder / "policy.yaml.sig").exists()
    check_enrolment(enrolment)
    assert enrolment.identity == identity(settings.state).public
    # The stock node of Flower reads no other form.
    stock = load_ssh_private_key((settings.state / "transport.key").read_bytes(), None)
    assert isinstance(stock, ec.EllipticCurvePrivateKey)
    assert isinstance(stock.curve, ec.SECP384R1)


def test_what_goes_out_holds_no_private_key(fed: Federation) -> None:
    fed.enrol("north")
    sent = fed.enrolment("north").read_bytes()
    assert b"PRIVATE" not in sent
    for path in fed.settings("north").state.iterdir():
        assert not any(line in sent for line in path.read_bytes().splitlines()[1:-1])


def test_a_name_that_yaml_would_read_as_a_number_stays_a_name(tmp_path: Path) -> None:
    made = make_federation(tmp_path)
    opened = open_kit(made.kit("north"), site="north")
    kit = opened.kit.model_copy(update={"site": "1e5"})
    folder = tmp_path / "sites" / "1e5"
    enrol(type(opened)(kit, opened.study, opened.files), folder, source=csv("ü 'x'\".csv"), now=NOW)
    settings = load_site_settings(folder / "site.yaml")
    assert (settings.site, settings.source.table) == ("1e5", Path("ü 'x'\".csv"))
    assert read_policy(settings.policy).site == "1e5"


def test_a_long_table_is_named_if_and_only_if_the_study_has_windows(fed: Federation, tmp_path: Path) -> None:
    windowed = make_federation(tmp_path / "windowed", windows=True)
    windowed.enrol("north")
    assert windowed.settings("north").source.series == windowed.folder / "long.csv"
    for each, source in ((windowed, csv("t")), (fed, csv("t", series="long.csv"))):
        with pytest.raises(MembershipError, match=r"^series: expected") as caught:
            enrol(open_kit(each.kit("south"), site="south"), tmp_path / "x", source=source, now=NOW)
        assert caught.value.code == ExitCode.USAGE
        assert not (tmp_path / "x").exists()


def test_a_site_that_is_set_up_is_not_set_up_again(fed: Federation) -> None:
    fed.enrol("north")
    before = files_of(fed.folder)
    with pytest.raises(MembershipError, match="set up already"):
        fed.enrol("north")
    assert files_of(fed.folder) == before


@pytest.mark.parametrize("lost", ["site.yaml", "policy.yaml", "study.yaml", "state/tls.key", "state/identity.pem"])
def test_a_folder_that_a_crash_left_half_done_is_completed_with_the_keys_that_are_there(
    fed: Federation, lost: str
) -> None:
    fed.enrol("north")
    folder = fed.folder / "sites" / "north"
    before = files_of(folder)
    for name in ("enrolment.json", lost):
        (folder / name).unlink()
    fed.enrol("north")
    after = files_of(folder)
    assert {name for name in before if after[name] == before[name]} >= set(before) - {"enrolment.json", lost}
    assert read_enrolment(fed.enrolment("north"))


def test_a_file_that_is_there_and_is_another_is_not_overwritten(fed: Federation) -> None:
    for name in ("site.yaml", "policy.yaml", "study.yaml", "ca.crt"):
        folder = fed.folder / "sites" / "north"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / name).write_text("mine\n")
        with pytest.raises(MembershipError, match=f"{name}: is there already"):
            fed.enrol("north")
        assert (folder / name).read_text() == "mine\n"


# --- join


def test_a_site_joins_with_its_certificate_and_peers(fed: Federation) -> None:
    fed.enrol("north", "south")
    fed.admit("north", "south")
    settings = fed.settings("north")
    found = join(settings, fed.admission("north"), now=NOW)
    keys = {name: member.identity for name, member in fed.roster.admitted.items()}
    assert (found.number, dict(found.peers)) == (1, {"south": keys["south"]})
    assert (found.policy_changed, found.keys_changed, found.days) == (True, False, 397)
    assert read_policy(settings.policy).peers == {"south": keys["south"]}
    assert (settings.state / "tls.crt").read_text() == fed.paper("north").certificate
    before = files_of(fed.folder)
    again = join(settings, fed.admission("north"), now=NOW)
    assert not again.policy_changed
    assert files_of(fed.folder) == before


def write_admission(fed: Federation, key: SigningKey | None = None, **changes: Any) -> Path:
    """North's admission with something changed, signed anew."""
    paper = fed.paper("north").model_copy(update=changes).signed(key or coordinator_key(fed.home))
    fed.admission("north").write_bytes(paper.encode())
    return fed.admission("north")


def does_not_join(
    fed: Federation, rule: str, code: ExitCode = ExitCode.KIT_INVALID, *, now: datetime = NOW, names: Path | None = None
) -> None:
    """Refused in one line, which names the admission or another file, and nothing is changed."""
    before = files_of(fed.folder)
    with pytest.raises(MembershipError, match=rule) as caught:
        join(fed.settings("north"), fed.admission("north"), now=now)
    assert caught.value.code == code
    assert str(caught.value).startswith(str(names or fed.admission("north")))
    assert "\n" not in str(caught.value)
    assert files_of(fed.folder) == before


@pytest.mark.parametrize(
    "name", [name for name in Admission.model_fields if name not in ("schema_version", "signature")]
)
def test_an_admission_of_which_a_field_was_changed_is_refused(joined: Federation, name: str) -> None:
    data = json.loads(joined.admission("north").read_bytes())
    other = {
        "site": "south",
        "number": 9,
        "certificate": joined.paper("south").certificate,
        "members": {**data["members"], "south": "0" * 64},
    }
    data[name] = other.get(name, "0" * 64)
    joined.admission("north").write_bytes(json.dumps(data, sort_keys=True, separators=(",", ":")).encode())
    does_not_join(joined, "admission: signature", ExitCode.UNTRUSTED)


def test_an_admission_of_somebody_else_is_refused(joined: Federation) -> None:
    write_admission(joined, STRANGER)
    does_not_join(joined, "admission: signature", ExitCode.UNTRUSTED)


def test_an_admission_that_is_not_for_this_site_study_or_identity_is_refused(joined: Federation) -> None:
    whole = joined.admission("north").read_bytes()
    members = joined.paper("north").members
    for changes, rule in (
        ({"site": "south"}, "site: is for south"),
        ({"study": "0" * 64}, "study: not the one"),
        ({"members": {**members, "north": STRANGER.public}}, "another identity for this site"),
    ):
        joined.admission("north").write_bytes(whole)
        write_admission(joined, **changes)
        does_not_join(joined, rule)


def test_an_admission_whose_certificate_is_not_this_sites_is_refused(joined: Federation, tmp_path: Path) -> None:
    authority, ca = _read_authority(joined.home)
    public = tls_key(joined.settings("north").state).public_key()
    names = SubjectAlternativeName([])
    foreign = make_members(tmp_path / "other", "north")
    shutil.copy(joined.settings("north").state / "tls.key", foreign.settings("north").state / "tls.key")
    whole = joined.admission("north").read_bytes()
    for certificate, rule in (
        (joined.paper("south").certificate, "common name"),
        (foreign.paper("north").certificate, "not from the federation's CA"),
        (_pem(_issue_server(public, names, authority=authority, ca=ca, now=NOW)).decode(), "common name"),
        ((joined.home / "ca.crt").read_text(), "common name"),
        ("nonsense", "expected one X.509"),
    ):
        joined.admission("north").write_bytes(whole)
        write_admission(joined, number=2, certificate=certificate)
        does_not_join(joined, f"certificate: .*{rule}")


def test_a_certificate_for_servers_or_for_another_key_of_the_same_name_is_refused(joined: Federation) -> None:
    authority, ca = _read_authority(joined.home)
    public = tls_key(joined.settings("north").state).public_key()
    whole = joined.admission("north").read_bytes()
    for key, use, rule in (
        (public, ExtendedKeyUsageOID.SERVER_AUTH, "not one for a TLS client"),
        (_new_key().public_key(), ExtendedKeyUsageOID.CLIENT_AUTH, "not for this site's TLS key"),
    ):
        made = _leaf(_named("north"), key, use, authority, ca, now=NOW).sign(authority, hashes.SHA256())
        joined.admission("north").write_bytes(whole)
        write_admission(joined, number=2, certificate=_pem(made).decode())
        does_not_join(joined, rule)


def test_an_admission_whose_certificate_is_not_in_force_is_refused(joined: Federation) -> None:
    does_not_join(joined, "expired on", ExitCode.CERTIFICATE_EXPIRED, now=NOW + timedelta(days=398))
    does_not_join(joined, "is the clock right", now=NOW - HOUR)


def test_an_admission_older_than_the_last_or_another_of_its_number_is_refused(joined: Federation) -> None:
    old = joined.admission("north").read_bytes()
    joined.enrol("east")
    joined.admit("east")
    joined.join("north")
    new = joined.admission("north").read_bytes()
    joined.admission("north").write_bytes(old)
    does_not_join(joined, "number=1: older than 2")
    joined.admission("north").write_bytes(new)
    members = joined.paper("north").members
    write_admission(joined, members={**members, "east": STRANGER.public})
    does_not_join(joined, "number=2: says something else")


def test_a_file_that_is_no_admission_is_refused(joined: Federation) -> None:
    for body, rule in ((b"", "not JSON"), (b"{}", "is needed"), (b" " * (MAX_PAPER + 1), "longer")):
        joined.admission("north").write_bytes(body)
        does_not_join(joined, rule)
    joined.admission("north").unlink()
    does_not_join(joined, "cannot be read")


def test_a_site_without_a_ca_or_with_another_does_not_join(joined: Federation, tmp_path: Path) -> None:
    path = joined.folder / "sites" / "north" / "site.yaml"
    data = yaml.safe_load(path.read_text())
    other = make_federation(tmp_path / "other")
    write_yaml(path, {**data, "ca": str(other.home / "ca.crt")})
    does_not_join(joined, "not from the federation's CA")
    write_yaml(path, {name: value for name, value in data.items() if name != "ca"})
    does_not_join(joined, "ca: the site file names none")


STEWARD = """# Read by the board on 3 May.
schema: privshare.policy/1
site: north
asset: ward   # one ledger
approved: {approved}
peers:        # written by join
  # nobody yet
  west: {peer}

  east: {other}
# The board said so.
max_epsilon: 0.5
max_delta: 1e-6
total_epsilon: 2
total_delta: 1e-6
least_noise: 2
columns: [age, amount, colour, ill]
coordinator: {coordinator}
expires: 2031-01-01
witnesses: {witnesses}
"""


def steward(fed: Federation, *, witnesses: int = 1) -> str:
    text = STEWARD.format(
        approved=fed.kits["north"].study,
        coordinator=coordinator_key(fed.home).public,
        peer="1" * 63 + "a",
        other="2" * 63 + "a",
        witnesses=witnesses,
    )
    fed.settings("north").policy.write_text(text)
    return text


def test_join_changes_nothing_in_the_policy_but_the_peers(joined: Federation) -> None:
    text = steward(joined)
    settings = joined.settings("north")
    before = read_policy(settings.policy)
    assert join(settings, joined.admission("north"), now=NOW).policy_changed
    after = read_policy(settings.policy)
    key = joined.paper("north").members["south"]
    assert after == before.model_copy(update={"peers": {"south": key}})
    kept = [line for line in text.splitlines() if not line.startswith(("peers:", "  ")) and line]
    assert settings.policy.read_text().splitlines()[: len(kept)] == kept


def test_peers_that_cannot_be_replaced_are_left_to_the_steward(joined: Federation) -> None:
    settings = joined.settings("north")
    text = steward(joined)
    settings.policy.write_text(text.replace("peers: ", "'peers': "))
    does_not_join(joined, "with the peers of the admission:.* the key peers is there twice", names=settings.policy)
    steward(joined, witnesses=2)
    does_not_join(joined, "with the peers of the admission: witnesses: more than", names=settings.policy)


def test_a_replacement_that_would_change_another_setting_is_not_written(
    joined: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    steward(joined)
    greedy = re.compile(_PEERS.pattern + "|^expires.*\n", re.MULTILINE)
    monkeypatch.setattr("client.enrolment._PEERS", greedy)
    does_not_join(joined, "peers: cannot be replaced", names=joined.settings("north").policy)


def test_a_policy_that_is_not_valid_is_said_to_be(joined: Federation) -> None:
    joined.settings("north").policy.write_text("site: north\n")
    with pytest.raises(StudyError, match=r"policy\.yaml"):
        joined.join("north")


def approve(fed: Federation, site: str = "north") -> None:
    settings = fed.settings(site)
    sign_policy(settings.policy, identity(settings.state))


def is_approved(fed: Federation, site: str = "north") -> bool:
    settings = fed.settings(site)
    try:
        load_policy(settings.policy, public=identity(settings.state).public)
    except PolicyError:
        return False
    return True


def test_changed_peers_need_a_new_approval_and_a_new_certificate_does_not(joined: Federation) -> None:
    assert not is_approved(joined)
    approve(joined)
    joined.rotate("south")
    joined.admit("south")
    joined.join("north")
    joined.rotate("north")
    joined.admit("north")
    joined.join("north")
    assert is_approved(joined)
    revoke(joined.home, "south", now=joined.now)
    joined.join("north")
    assert not is_approved(joined)
    assert read_policy(joined.settings("north").policy).peers == {}


def test_a_peer_whose_name_yaml_would_read_as_a_number_keeps_it(joined: Federation) -> None:
    members = {**joined.paper("north").members, "1e5": "1" * 64, "null": "2" * 64}
    write_admission(joined, number=2, members=members)
    joined.join("north")
    assert set(read_policy(joined.settings("north").policy).peers) == {"south", "1e5", "null"}


# --- rotation


def test_a_rotation_leaves_the_keys_in_use_until_its_admission_is_taken_up(joined: Federation) -> None:
    settings = joined.settings("north")
    before = files_of(settings.state)
    enrolment = joined.rotate("north")
    pending = files_of(settings.state)
    assert {name: pending[name] for name in before} == before
    assert set(pending) - set(before) == {"next/transport.key", "next/tls.key"}
    assert stat.S_IMODE((settings.state / "next" / "tls.key").stat().st_mode) == 0o600
    assert enrolment.identity == identity(settings.state).public
    joined.admit("north")
    found = join(settings, joined.admission("north"), now=joined.now)
    assert (found.keys_changed, found.policy_changed) == (True, False)
    after = files_of(settings.state)
    assert set(after) == set(before)
    for name in ("transport.key", "tls.key"):
        assert after[name] == pending[f"next/{name}"]
        assert stat.S_IMODE((settings.state / name).stat().st_mode) == 0o600
    assert after["identity.pem"] == before["identity.pem"]
    assert not (settings.state / "next").exists()
    assert check_certificate(settings, joined.now) == 397


def test_a_rotation_that_is_repeated_enrols_with_the_same_next_keys(joined: Federation) -> None:
    first, second = joined.rotate("north"), joined.rotate("north")
    assert first.transport == second.transport
    assert second.made == first.made + HOUR
    joined.admit("north")
    joined.join("north")
    assert joined.rotate("north").transport != second.transport


def test_an_admission_for_the_keys_in_use_leaves_the_next_ones_waiting(joined: Federation) -> None:
    joined.rotate("north")
    joined.enrol("east")
    joined.admit("east")
    settings = joined.settings("north")
    assert not join(settings, joined.admission("north"), now=joined.now).keys_changed
    assert (settings.state / "next" / "tls.key").exists()
    joined.admit("north")
    assert join(settings, joined.admission("north"), now=joined.now).keys_changed


@pytest.mark.parametrize("stop", range(6))
def test_a_join_that_a_crash_cut_short_is_completed_by_the_next(
    joined: Federation, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    joined.rotate("north")
    joined.enrol("east")
    joined.admit("north", "east")
    settings, steps = joined.settings("north"), []

    def counted(function: Any) -> Any:
        def step(*arguments: Any) -> Any:
            if len(steps) == stop:
                raise KeyboardInterrupt
            steps.append(function)
            return function(*arguments)

        return step

    with monkeypatch.context() as patch:
        patch.setattr("client.enrolment.write_durably", counted(__import__("common.files").files.write_durably))
        patch.setattr(Path, "replace", counted(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            join(settings, joined.admission("north"), now=joined.now)
    joined.join("north")
    assert check_certificate(settings, joined.now) == 397
    assert set(read_policy(settings.policy).peers) == {"east", "south"}
    assert not (settings.state / "next").exists()
    assert files_of(settings.state)["admission.json"] == joined.admission("north").read_bytes()


def test_a_rotation_of_a_site_whose_identity_is_gone_makes_no_new_one(joined: Federation) -> None:
    settings = joined.settings("north")
    (settings.state / "identity.pem").unlink()
    with pytest.raises(PolicyError, match=r"identity\.pem"):
        rotate(settings, now=NOW + HOUR)


# --- what is checked at every start


def test_days_of_a_certificate_are_told_until_it_has_expired(joined: Federation) -> None:
    settings = joined.settings("north")
    assert check_certificate(settings, NOW) == 397
    assert check_certificate(settings, NOW + timedelta(days=396, hours=1)) == 0
    with pytest.raises(MembershipError, match=r"tls\.crt: certificate: expired on") as caught:
        check_certificate(settings, NOW + timedelta(days=397, seconds=1))
    assert caught.value.code == ExitCode.CERTIFICATE_EXPIRED
    with pytest.raises(MembershipError, match="is the clock right"):
        check_certificate(settings, NOW - HOUR)


def test_a_site_that_never_joined_is_not_admitted(fed: Federation) -> None:
    fed.enrol("north")
    with pytest.raises(MembershipError, match="has not joined") as caught:
        check_certificate(fed.settings("north"), NOW)
    assert caught.value.code == ExitCode.NOT_ADMITTED


def test_a_certificate_for_another_key_is_not_used(joined: Federation) -> None:
    settings = joined.settings("north")
    shutil.copy(joined.settings("south").state / "tls.key", settings.state / "tls.key")
    with pytest.raises(MembershipError, match="not for this site's TLS key"):
        check_certificate(settings, NOW)


@pytest.mark.parametrize("name", ["transport.key", "tls.key"])
def test_a_private_key_that_others_can_read_is_gone_or_is_another_kind_is_not_used(
    joined: Federation, name: str
) -> None:
    settings = joined.settings("north")
    path = settings.state / name
    path.chmod(0o640)
    with pytest.raises(PolicyError, match=f"{name}: others can read"):
        check_certificate(settings, NOW)
    path.chmod(0o600)
    assert check_certificate(settings, NOW) == 397
    other = ec.derive_private_key(7, ec.SECP521R1())
    for form in (PrivateFormat.PKCS8, PrivateFormat.OpenSSH):
        path.write_bytes(other.private_bytes(Encoding.PEM, form, NoEncryption()))
        with pytest.raises(PolicyError, match=f"{name}: not an unencrypted ECDSA"):
            check_certificate(settings, NOW)
    path.write_bytes(b"nonsense")
    with pytest.raises(PolicyError, match=f"{name}: not an unencrypted ECDSA"):
        check_certificate(settings, NOW)
    path.unlink()
    with pytest.raises(PolicyError, match=f"{name}: this private key cannot be read"):
        check_certificate(settings, NOW)


def test_keys_are_made_once(tmp_path: Path) -> None:
    for make, read in ((make_transport_key, transport_key), (make_tls_key, tls_key)):
        made = make(tmp_path)
        assert make(tmp_path).private_numbers() == made.private_numbers() == read(tmp_path).private_numbers()
    assert make_identity(tmp_path).public == make_identity(tmp_path).public


def test_a_key_that_cannot_be_made_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for make in (make_transport_key, make_tls_key):
        with pytest.raises(PrivShareError, match="key"):
            make(tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("superlink", "fed.example.org", "superlink=fed.example.org: expected host:port"),
        ("health", "0.0.0.0:8080", "expected localhost or another loopback address"),
        ("health", "fed.example.org:8080", "expected localhost"),
        ("health", "127.0.0.1", "expected host:port"),
    ],
)
def test_an_address_in_the_site_file_is_checked(joined: Federation, name: str, value: str, rule: str) -> None:
    path = joined.folder / "sites" / "north" / "site.yaml"
    write_yaml(path, {**yaml.safe_load(path.read_text()), name: value})
    with pytest.raises(StudyError, match=rule):
        load_site_settings(path)


@pytest.mark.parametrize("value", ["localhost:8080", "127.0.0.1:8080", "127.0.0.2:1", "[::1]:8080"])
def test_health_is_told_on_loopback(joined: Federation, value: str) -> None:
    path = joined.folder / "sites" / "north" / "site.yaml"
    write_yaml(path, {**yaml.safe_load(path.read_text()), "health": value})
    assert joined.settings("north").health == value


# --- commands


def test_init_join_approve_and_rotate_as_a_steward_types_them(tmp_path: Path) -> None:
    fed = make_federation(tmp_path, now=datetime.now(UTC))
    table = str(tmp_path / "table.csv")
    arguments = ["init", "--kit", str(fed.kit("north")), "--table", table]
    result = run(fed, *arguments)
    assert result.exit_code == 0, result.output
    kit = fed.kits["north"]
    for part in (kit.study, kit.coordinator, identity(fed.settings("north").state).public):
        assert spaced(part) in result.stdout
    assert "send" in result.stdout
    assert "set up already" in fails(run(fed, *arguments), ExitCode.KIT_INVALID)
    fed.enrol("south")
    fed.now = datetime.now(UTC)
    fed.admit("north", "south")
    result = run(fed, "join", str(fed.admission("north")))
    assert result.exit_code == 0, result.output
    assert spaced(fed.roster.members["south"].identity or "") in result.stdout
    assert "privshare-client approve" in result.stdout
    assert "warning" not in result.stdout
    assert run(fed, "approve", "--yes").exit_code == 0
    assert is_approved(fed)
    assert "approve" not in run(fed, "join", str(fed.admission("north"))).stdout
    assert "enrolment.json" in run(fed, "rotate").stdout
    fed.now = datetime.now(UTC)
    fed.admit("north")
    assert "restart the site" in run(fed, "join", str(fed.admission("north"))).stdout
    assert is_approved(fed)


def test_join_warns_of_a_certificate_that_ends_soon(tmp_path: Path) -> None:
    fed = make_members(tmp_path, now=datetime.now(UTC) - timedelta(days=380))
    result = run(fed, "join", str(fed.admission("north")))
    assert "16 days" in result.stdout
    assert "warning" in result.stdout


def test_commands_end_with_the_code_of_what_is_wrong(joined: Federation) -> None:
    line = fails(
        run(joined, "init", "--kit", str(joined.kit("north")), "--table", "t", site="west"), ExitCode.KIT_INVALID
    )
    assert "the kit is for north" in line
    assert "no such site file" in fails(run(joined, "rotate", site="west"), ExitCode.STUDY_NOT_FOUND)
    write_admission(joined, STRANGER)
    fails(run(joined, "join", str(joined.admission("north"))), ExitCode.UNTRUSTED)
    certificate = load_pem_x509_certificate((joined.settings("north").state / "tls.crt").read_bytes())
    assert certificate.not_valid_after_utc == NOW + timedelta(days=397)
