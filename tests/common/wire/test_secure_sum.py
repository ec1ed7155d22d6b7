"""Masks that cancel: exact sums of all, and nothing of anybody from fewer.

The statistical tests use fixed keys, so that they pass or fail the same way each time. Beside each stands the chance
that it fails for other keys though the masks are right.
"""

import hashlib
import hmac
import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.errors import ProtocolError, TooFewSitesError
from common.privacy.ledger import canonical
from common.privacy.signatures import SigningKey
from common.wire import secure_sum
from common.wire.secure_sum import MaskAnnouncement, MaskKey, Participants, check_range, masked, unmasked_sum

STUDY, RUN = "5a" * 32, "run-1"
REQUEST, DIGEST = "run-1/one_way", "c3" * 32
# Not in the order in which they are made: the order of names decides.
NAMES = ["north", "east", "West", "south", "a", "b.2", "b-10", "z"]
LOWEST, HIGHEST = -(2**63), 2**63 - 1
CELLS = 4096
PRIME = 2**255 - 19
LOW_ORDER = [
    0,
    1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
    PRIME - 1,
]


def identity(site: str) -> SigningKey:
    return SigningKey.from_seed(hashlib.sha256(b"identity " + site.encode()).digest())


def mask_key(site: str, generation: int = 0) -> MaskKey:
    seed = hashlib.sha256(f"mask {generation} {site}".encode()).digest()
    return MaskKey(X25519PrivateKey.from_private_bytes(seed))


def announced(site: str, generation: int = 0, *, study: str = STUDY, run: str = RUN) -> MaskAnnouncement:
    return mask_key(site, generation).announce(site, study=study, run=run, identity=identity(site))


def peers_of(sites: Iterable[str]) -> dict[str, str]:
    return {site: identity(site).public for site in sites}


def among(sites: list[str], generation: int = 0, *, study: str = STUDY, run: str = RUN) -> Participants:
    said = [announced(site, generation, study=study, run=run) for site in sites]
    return Participants.verified(said, own=said[0], peers=peers_of(sites))


def mask(
    site: str, participants: Participants, vector: np.ndarray, *, request: str = REQUEST, digest: str = DIGEST
) -> np.ndarray:
    return masked(vector, mask_key(site), participants, request_identity=request, request_digest=digest)


def masks(site: str, participants: Participants, **asked: str) -> np.ndarray:
    """The sum of a site's masks alone."""
    return mask(site, participants, np.zeros(CELLS, dtype=np.int64), **asked)


def assert_uniform(words: np.ndarray) -> None:
    """Every byte of every place has every value as often, and bits do not follow each other. False alarm: 1e-7 each."""
    octets = words.astype("<u8").view(np.uint8).reshape(-1, 8)
    assert stats.chisquare(np.bincount(octets.ravel(), minlength=256)).pvalue > 1e-7
    for place in range(8):
        assert stats.chisquare(np.bincount(octets[:, place], minlength=256)).pvalue > 1e-7
    changes = int(np.count_nonzero(np.diff(np.unpackbits(octets.ravel()))))
    assert stats.binomtest(changes, octets.size * 8 - 1, 0.5).pvalue > 1e-7


def assert_independent(left: np.ndarray, right: np.ndarray) -> None:
    """No correlation of what the words are worth, and half of the bits agree. False alarm: 1e-7 each."""
    found = np.corrcoef(left.astype(np.float64), right.astype(np.float64))[0, 1]
    assert abs(found) < 5.33 / math.sqrt(len(left))
    agree = np.unpackbits((left.view(np.uint64) ^ right.view(np.uint64)).view(np.uint8))
    assert stats.binomtest(int(agree.sum()), len(agree), 0.5).pvalue > 1e-7


# --- the sum


@st.composite
def vectors(draw: st.DrawFn) -> list[np.ndarray]:
    """Vectors of 2 to 8 sites, of random and extreme numbers."""
    sites, cells = draw(st.integers(2, 8)), draw(st.integers(0, 5))
    number = st.integers(LOWEST, HIGHEST) | st.sampled_from([LOWEST, HIGHEST, -1, 0, 1])
    rows = draw(st.lists(st.lists(number, min_size=cells, max_size=cells), min_size=sites, max_size=sites))
    return [np.array(row, dtype=np.int64) for row in rows]


def sent_by(sites: list[str], summands: list[np.ndarray]) -> dict[str, np.ndarray]:
    participants = among(sites)
    return {site: mask(site, participants, vector) for site, vector in zip(sites, summands, strict=True)}


def exact_sum(summands: list[np.ndarray]) -> list[int]:
    return [sum(int(vector[cell]) for vector in summands) for cell in range(len(summands[0]))]


@settings(deadline=None)
@given(vectors())
def test_what_all_sites_send_adds_up_to_their_sum_modulo_2_to_the_64(summands: list[np.ndarray]) -> None:
    sent = sent_by(NAMES[: len(summands)], summands)
    added = [sum(column) % 2**64 for column in zip(*(one.tolist() for one in sent.values()), strict=True)]
    assert added == [value % 2**64 for value in exact_sum(summands)]


@settings(deadline=None)
@given(vectors())
def test_a_sum_that_fits_is_exact(summands: list[np.ndarray]) -> None:
    sites, bound = NAMES[: len(summands)], HIGHEST // len(summands)
    fitting = [np.clip(vector, -bound, bound) for vector in summands]
    added = unmasked_sum(sent_by(sites, fitting), sites, cells=len(fitting[0]), bound=bound)
    assert added.dtype == np.int64
    assert added.tolist() == exact_sum(fitting)


@pytest.mark.parametrize("sites", range(2, 9))
def test_sums_at_the_ends_of_the_range_are_exact(sites: int) -> None:
    names, bound = NAMES[:sites], HIGHEST // sites
    participants = among(names)
    vector = np.array([bound, -bound, 0, 1, -1], dtype=np.int64)
    sent = {site: mask(site, participants, vector) for site in names}
    assert unmasked_sum(sent, names, cells=5, bound=bound).tolist() == [sites * int(value) for value in vector]


@settings(deadline=None, max_examples=20)
@given(st.permutations(NAMES[:4]), st.permutations(NAMES[:4]))
def test_neither_the_order_of_announcements_nor_that_of_vectors_matters(first: list[str], second: list[str]) -> None:
    said = [announced(site) for site in first]
    participants = Participants.verified(said, own=said[0], peers=peers_of(second))
    assert participants == among(NAMES[:4])
    sent = {site: mask(site, participants, np.arange(3)) for site in second}
    assert unmasked_sum(sent, first, cells=3, bound=2).tolist() == [0, 4, 8]


@pytest.mark.parametrize("cells", [1, secure_sum._CHUNK - 1, secure_sum._CHUNK, 2 * secure_sum._CHUNK + 3])
def test_a_vector_of_any_length_is_masked_by_one_keystream(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    names = NAMES[:3]
    participants, vector = among(names), np.arange(cells) - 7
    sent = {site: mask(site, participants, vector) for site in names}
    assert unmasked_sum(sent, names, cells=cells, bound=cells + 7).tolist() == (3 * vector).tolist()
    # A chunk that began the keystream anew would repeat the masks of the one before it.
    hidden = sent["north"] - vector.view(np.uint64)
    assert len(np.unique(hidden)) == cells
    monkeypatch.setattr(secure_sum, "_CHUNK", 1000)
    assert mask("north", participants, vector).tolist() == sent["north"].tolist()


def test_masking_leaves_the_vector_as_it_was_and_takes_views() -> None:
    participants, whole = among(NAMES[:2]), np.arange(20)
    every_other = whole[::2]
    sent = {site: mask(site, participants, every_other) for site in NAMES[:2]}
    assert whole.tolist() == list(range(20))
    assert unmasked_sum(sent, NAMES[:2], cells=10, bound=18).tolist() == (2 * every_other).tolist()


# --- what one site sends, and what fewer than all do


@pytest.mark.statistical
@pytest.mark.parametrize("sites", [2, 3, 8])
@pytest.mark.parametrize("value", [0, 1, -1, HIGHEST])
def test_what_one_site_sends_is_uniform_whatever_its_vector(sites: int, value: int) -> None:
    # False alarm: 1e-6 a case.
    assert_uniform(mask("north", among(NAMES[:sites]), np.full(50_000, value)))


@pytest.mark.statistical
@pytest.mark.parametrize("sites", [2, 3, 8])
def test_what_one_site_sends_is_not_correlated_with_its_vector(sites: int) -> None:
    # False alarm: 2e-7 a case.
    vector = np.random.default_rng(1).integers(LOWEST, HIGHEST, size=50_000)
    assert_independent(mask("north", among(NAMES[:sites]), vector), vector)


@pytest.mark.statistical
@pytest.mark.parametrize("sites", [3, 5])
def test_the_sum_of_all_sites_but_one_is_uniform(sites: int) -> None:
    # False alarm: 1e-6 for each that is left out.
    names = NAMES[:sites]
    participants = among(names)
    sent = {site: mask(site, participants, np.full(CELLS, 5)) for site in names}
    for absent in names:
        assert_uniform(np.sum([sent[site] for site in names if site != absent], axis=0, dtype=np.uint64))


@pytest.mark.statistical
@pytest.mark.parametrize("sites", [3, 4, 8])
def test_liars_who_put_all_their_keys_together_see_the_sum_of_two_honest_sites_and_no_more(sites: int) -> None:
    names = NAMES[:sites]
    participants = among(names)
    public = {one.site: one.public for one in participants.announcements}
    random = np.random.default_rng(2)
    true = {site: random.integers(-1000, 1000, size=CELLS) for site in names}
    sent = {site: mask(site, participants, true[site]) for site in names}
    honest, liars = names[:2], names[2:]
    left = {}
    for site in honest:
        known = np.zeros(CELLS, dtype=np.uint64)
        for liar in liars:
            # From the liar's side: its private key and what everybody was told.
            secret = mask_key(liar).shared_with(public[site])
            secure_sum._add_mask(known, mask_key_of(secret, [site, liar], participants.digest), is_first=site < liar)
        left[site] = sent[site] - known
        # False alarm: 1.2e-6.
        assert_uniform(left[site])
        assert_independent(left[site], true[site])
    assert (left["north"] + left["east"]).view(np.int64).tolist() == (true["north"] + true["east"]).tolist()


def mask_key_of(secret: bytes, pair: list[str], salt: str, *, request: str = REQUEST, digest: str = DIGEST) -> bytes:
    """The key of a pair's mask from its secret, HKDF as RFC 5869 writes it down."""
    info = canonical(
        {
            "purpose": "privshare.mask/1",
            "study": STUDY,
            "run": RUN,
            "request": request,
            "request_digest": digest,
            "pair": sorted(pair),
        }
    )
    extracted = hmac.digest(bytes.fromhex(salt), secret, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


# --- one transcript, one mask


def test_masks_of_different_transcripts_are_independent() -> None:
    names = NAMES[:3]
    plain = among(names)
    said = {
        "plain": masks("north", plain),
        "request": masks("north", plain, request="run-1/tables-1"),
        "digest": masks("north", plain, digest="c4" * 32),
        "run": masks("north", among(names, run="run-2")),
        "study": masks("north", among(names, study="5b" * 32)),
        "fewer": masks("north", among(names[:2])),
        "more": masks("north", among(NAMES[:4])),
        "other site": masks("east", plain),
    }
    # One other site has a new key, and this one the same: only the set of participants is another.
    renewed = [announced("north"), announced("east"), announced("West", 1)]
    said["other key"] = masks("north", Participants.verified(renewed, own=renewed[0], peers=peers_of(names)))
    # Two equal words by chance: below 2^-25. False alarm of the statistics: 2e-7 for each of 36 pairs.
    assert len({word for one in said.values() for word in one.tolist()}) == len(said) * CELLS
    for left, right in itertools.combinations(said.values(), 2):
        assert_independent(left, right)
        assert_uniform(left - right)


def test_every_pair_of_every_request_has_a_mask_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[bytes] = []
    add = secure_sum._add_mask
    monkeypatch.setattr(secure_sum, "_add_mask", lambda total, key, **sign: (used.append(key), add(total, key, **sign)))
    names = NAMES[:5]
    participants = among(names)
    for request in (REQUEST, "run-1/tables-1"):
        for site in names:
            mask(site, participants, np.zeros(2, dtype=np.int64), request=request)
    # Each of 10 pairs for each of 2 requests, used by its two sites and nobody else.
    assert len(used) == 40
    assert len(set(used)) == 20
    assert all(used.count(key) == 2 and len(key) == 32 for key in used)


def test_a_pair_shares_no_mask_where_its_names_or_requests_only_join_to_the_same_text() -> None:
    # Fields of a transcript are told apart: ("a", "bc") is not ("ab", "c").
    plain = among(["a", "b.2"])
    one = masks("a", plain, request="run-1/x", digest="ab")
    assert masks("a", plain, request="run-1/xa", digest="b").tolist() != one.tolist()


@pytest.mark.parametrize("change", ["request", "digest", "participants"])
def test_sites_that_were_told_different_things_are_not_added_up(change: str) -> None:
    names = NAMES[:3]
    participants = among(names)
    sent = {site: mask(site, participants, np.arange(CELLS)) for site in names}
    if change == "participants":
        other = Participants((announced("West", 1), *among(names).announcements[1:]))
        sent["north"] = mask("north", other, np.arange(CELLS))
    else:
        sent["north"] = mask("north", participants, np.arange(CELLS), **{change: "another"})
    # By chance 4096 uniform words lie within: below 2^-100,000.
    with pytest.raises(ProtocolError, match="do not cancel"):
        unmasked_sum(sent, names, cells=CELLS, bound=2**40)


# --- who takes part


def refused(said: list[MaskAnnouncement], match: str, *, kind: type[ProtocolError] = ProtocolError) -> None:
    with pytest.raises(ProtocolError, match=match) as caught:
        Participants.verified(said, own=announced("north"), peers=peers_of(NAMES[:3]))
    assert type(caught.value) is kind


def test_two_sites_are_enough() -> None:
    assert [one.site for one in among(["north", "east"]).announcements] == ["east", "north"]


def test_a_site_that_is_alone_does_not_mask() -> None:
    with pytest.raises(TooFewSitesError, match="at least 2"):
        among(["north"])
    alone = {"north": np.zeros(1, dtype=np.uint64)}
    for names in (["north"], ["north", "north"], []):
        with pytest.raises(TooFewSitesError, match="at least 2"):
            unmasked_sum(alone, names, cells=1, bound=1)


@pytest.mark.parametrize("absent", NAMES[:3])
def test_a_missing_announcement_is_refused_by_name(absent: str) -> None:
    said = [announced(site) for site in NAMES[:3] if site != absent]
    refused(said, f"site {absent}: is missing", kind=TooFewSitesError)


def test_an_announcement_too_many_is_refused() -> None:
    three = [announced(site) for site in NAMES[:3]]
    refused([*three, announced("south")], "site south: is not among the participants")
    refused([*three, announced("east")], "site east: announced two keys")
    refused([*three, announced("east", 1)], "site east: announced two keys")


def test_an_announcement_by_another_key_is_refused() -> None:
    three = [announced(site) for site in NAMES[:3]]
    # Signed by another participant, by nobody, and not for this purpose.
    unsigned = replace(announced("east"), signature="")
    body = canonical({name: value for name, value in asdict(unsigned).items() if name != "signature"})
    wrong = [
        unsigned.signed(identity("north")),
        unsigned,
        replace(unsigned, signature=identity("east").sign(body, purpose="statement")),
        replace(announced("east"), public=mask_key("south").public),
    ]
    for one in wrong:
        refused([three[0], one, three[2]], "site east: did not sign")


def test_swapped_announcements_are_refused() -> None:
    north, east, west = (announced(site) for site in NAMES[:3])
    swapped = [replace(north, site="east"), replace(east, site="north"), west]
    refused(swapped, "did not sign")
    keys = [replace(north, public=east.public), replace(east, public=north.public), west]
    refused(keys, "did not sign")


@pytest.mark.parametrize("change", [{"study": "5b" * 32}, {"run": "run-2"}])
def test_an_announcement_of_another_study_or_run_is_refused(change: dict[str, str]) -> None:
    said = [announced("north"), announced("east", **change), announced("West")]  # type: ignore[arg-type]
    refused(said, "site east: its key for masks is of another study or run")


def test_an_older_announcement_in_a_sites_own_name_is_refused() -> None:
    said = [announced(site) for site in NAMES[:3]]
    with pytest.raises(ProtocolError, match="site north: the announcement in its name is not its last one"):
        Participants.verified(said, own=announced("north", 1), peers=peers_of(NAMES[:3]))


def test_two_sites_with_the_same_key_are_refused() -> None:
    copied = replace(announced("east"), public=announced("West").public).signed(identity("east"))
    refused([announced("north"), copied, announced("West")], "two announced the same key")


@pytest.mark.parametrize("number", LOW_ORDER)
def test_a_key_whose_secrets_everybody_knows_is_refused(number: int) -> None:
    public = number.to_bytes(32, "little").hex()
    weak = replace(announced("east"), public=public).signed(identity("east"))
    refused([announced("north"), weak, announced("West")], "keeps a secret")
    with pytest.raises(ProtocolError, match="keeps a secret"):
        mask_key("north").shared_with(public)


@pytest.mark.parametrize("spelling", [PRIME, PRIME + 9, 2**255 + 9, 2**256 - 1])
def test_a_key_has_one_spelling(spelling: int) -> None:
    # X25519 drops the top bit and takes numbers modulo the prime: one key could pass for two.
    said = replace(announced("east"), public=spelling.to_bytes(32, "little").hex()).signed(identity("east"))
    refused([announced("north"), said, announced("West")], "keeps a secret")
    with pytest.raises(ProtocolError, match="not of its form"):
        MaskAnnouncement.from_dict(asdict(said))


def test_the_digest_of_participants_tells_every_difference() -> None:
    names = NAMES[:3]
    digests = [
        among(names).digest,
        among(names[:2]).digest,
        among(NAMES[:4]).digest,
        among(names, 1).digest,
        among(names, run="run-2").digest,
        among(names, study="5b" * 32).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)


# --- what came in a message


def test_an_announcement_comes_back_from_a_message() -> None:
    said = announced("north")
    again = MaskAnnouncement.from_dict(json.loads(json.dumps(asdict(said))))
    assert again == said
    assert again.is_by(identity("north").public)
    assert not again.is_by(identity("east").public)


def test_an_announcement_of_another_form_is_refused() -> None:
    good = asdict(announced("north"))
    wrong: list[Any] = [None, 7, "text", [], {}, [good], {**good, "more": 1}]
    wrong += [{key: value for key, value in good.items() if key != name} for name in good]
    wrong += [{**good, name: value} for name in good for value in (None, 1, True, ["x"], {}, b"", "x" * 257)]
    keys = [
        "",
        "00",
        good["public"].upper(),
        good["public"] + "00",
        good["public"][:-2],
        " " + good["public"],
        "é" * 64,
    ]
    wrong += [{**good, "public": public} for public in keys]
    for data in wrong:
        with pytest.raises(ProtocolError, match="not of its form"):
            MaskAnnouncement.from_dict(data)


# --- what is added up


def test_a_missing_vector_stops_the_sum_and_is_named() -> None:
    participants = among(NAMES[:3])
    sent = {site: mask(site, participants, np.arange(2)) for site in NAMES[:3]}
    for absent in NAMES[:3]:
        rest = {site: one for site, one in sent.items() if site != absent}
        with pytest.raises(TooFewSitesError, match=f"site {absent}: is missing"):
            unmasked_sum(rest, NAMES[:3], cells=2, bound=1)


def test_a_vector_of_a_site_that_takes_no_part_stops_the_sum() -> None:
    participants = among(NAMES[:3])
    sent = {site: mask(site, participants, np.arange(2)) for site in NAMES[:3]}
    with pytest.raises(ProtocolError, match="site West: is not among the participants"):
        unmasked_sum(sent, NAMES[:2], cells=2, bound=1)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(2, dtype=np.int64),
        np.zeros(2),
        np.zeros(2, dtype=np.uint32),
        np.zeros(3, dtype=np.uint64),
        np.zeros((2, 1), dtype=np.uint64),
        np.zeros((), dtype=np.uint64),
    ],
)
def test_a_vector_of_another_type_or_shape_stops_the_sum_and_its_site_is_named(wrong: np.ndarray) -> None:
    sent = {"north": mask("north", among(NAMES[:2]), np.arange(2)), "east": wrong}
    with pytest.raises(ProtocolError, match="site east: expected 2 masked numbers"):
        unmasked_sum(sent, NAMES[:2], cells=2, bound=1)


@pytest.mark.parametrize("value", [6, -6, 7, -7, LOWEST, HIGHEST])
def test_a_sum_beyond_what_all_sites_can_add_is_refused(value: int) -> None:
    zeros = np.zeros(1, dtype=np.uint64)
    sent = {"north": np.array([value], dtype=np.int64).view(np.uint64), "east": zeros}
    if abs(value) <= 6:
        assert unmasked_sum(sent, NAMES[:2], cells=1, bound=3).tolist() == [value]
    else:
        with pytest.raises(ProtocolError, match="do not cancel"):
            unmasked_sum(sent, NAMES[:2], cells=1, bound=3)


def test_a_bound_with_which_sums_could_leave_the_integers_is_refused() -> None:
    for sites in (2, 3, 32):
        most = (2**63 - 1) // sites
        check_range(most, sites=sites)
        check_range(0, sites=sites)
        for bound in (most + 1, 2**63, -1):
            with pytest.raises(ValueError, match="bound="):
                check_range(bound, sites=sites)
    with pytest.raises(ValueError, match="bound="):
        unmasked_sum({}, NAMES[:2], cells=1, bound=2**62)


@pytest.mark.parametrize("vector", [np.zeros(2), np.zeros(2, dtype=np.uint64), np.zeros((2, 2), dtype=np.int64)])
def test_what_is_no_vector_of_whole_numbers_is_not_masked(vector: np.ndarray) -> None:
    with pytest.raises(ValueError, match="vector"):
        mask("north", among(NAMES[:2]), vector)


def test_a_key_that_was_not_announced_masks_nothing() -> None:
    asked = {"request_identity": REQUEST, "request_digest": DIGEST}
    for key in (mask_key("north", 1), mask_key("south")):
        with pytest.raises(ValueError, match="not the one that was announced"):
            masked(np.arange(2), key, among(NAMES[:2]), **asked)


def test_keys_are_new_each_time_and_show_nothing_of_themselves() -> None:
    keys = [MaskKey.generate() for _ in range(8)]
    assert len({key.public for key in keys}) == 8
    private = keys[0]._private.private_bytes_raw().hex()
    assert private not in repr(keys[0]) + repr(keys[0].announce("north", study=STUDY, run=RUN, identity=identity("a")))


# --- the format, for ever

FIXED = {"east": bytes(range(32)), "north": bytes(range(32, 64)), "west": bytes(range(64, 96))}
FIXED_VECTOR = np.array([0, 1, -1, HIGHEST, LOWEST, 7, 8, 9, 10])
# Of this code when it was written, and of `expected_by_hand`, which shares none of it.
FIXED_DIGEST = "7b118dbd7d6cdd73ee1aa127c305008779998ce670e593676d2428e1bd0c61fd"
FIXED_SIGNATURE = (
    "dd6c8439f68b509ccecc467110f0e365ac778d557520f013d9a278cfc43d1720"
    "d1e8c752374d61101caef6975ebe1047d1740ca73cd27a3f3988e8cb8f006c0c"
)
FIXED_MASKED = {
    "east": [
        13460159840285452450,
        10922441133531363975,
        18024841957702723019,
        15260820591284906361,
        18202541349094708100,
        655464876838088602,
        15294674290837699934,
        18071102349648027430,
        2007276479036058656,
    ],
    "north": [
        16146487718042748195,
        16761533120658316062,
        17412730306359003745,
        1881226078613317560,
        12034885616294869555,
        4713249028358118965,
        1339326914070069194,
        8007937358163134187,
        1307722183056473949,
    ],
    "west": [
        7286840589090902587,
        9209513893229423198,
        1455915883357376465,
        10528069440666103500,
        15879433218884301385,
        13078030168513344070,
        1812742868801782512,
        10814448439607941642,
        15131745411617019041,
    ],
}


def fixed_participants() -> Participants:
    said = [
        MaskKey(X25519PrivateKey.from_private_bytes(seed)).announce(
            site, study=STUDY, run=RUN, identity=SigningKey.from_seed(seed)
        )
        for site, seed in FIXED.items()
    ]
    peers = {site: SigningKey.from_seed(seed).public for site, seed in FIXED.items()}
    return Participants.verified(said, own=said[0], peers=peers)


def test_masked_vectors_stay_the_same_for_ever() -> None:
    participants = fixed_participants()
    assert participants.digest == FIXED_DIGEST
    assert participants.announcements[0].signature == FIXED_SIGNATURE
    for site, seed in FIXED.items():
        key = MaskKey(X25519PrivateKey.from_private_bytes(seed))
        sent = masked(FIXED_VECTOR, key, participants, request_identity=REQUEST, request_digest=DIGEST)
        assert sent.dtype == np.uint64
        assert sent.tolist() == FIXED_MASKED[site]


def test_masked_vectors_are_what_the_standards_say() -> None:
    for site in FIXED:
        assert expected_by_hand(site) == FIXED_MASKED[site]


def expected_by_hand(site: str) -> list[int]:
    """A masked vector from RFC 7748, 5869 and 8439 in plain integers."""
    base = (9).to_bytes(32, "little")
    public = {name: ladder(seed, base) for name, seed in FIXED.items()}
    said = [[name, STUDY, RUN, public[name].hex()] for name in sorted(FIXED)]
    salt = hashlib.sha256(canonical({"purpose": "privshare.participants/1", "announced": said})).hexdigest()
    total = [int(value) for value in FIXED_VECTOR]
    for other in sorted(set(FIXED) - {site}):
        key = mask_key_of(ladder(FIXED[site], public[other]), [site, other], salt)
        stream = b"".join(chacha_block(key, number) for number in range(2))
        words = [int.from_bytes(stream[8 * cell : 8 * cell + 8], "little") for cell in range(len(total))]
        sign = 1 if site < other else -1
        total = [(value + sign * word) % 2**64 for value, word in zip(total, words, strict=True)]
    return total


def ladder(private: bytes, public: bytes) -> bytes:
    """X25519 as in RFC 7748, section 5."""
    scalar = int.from_bytes(private, "little") & ~7 & (2**255 - 1) | 2**254
    start = int.from_bytes(public, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, start, 1
    for bit in reversed(range(255)):
        swap = scalar >> bit & 1
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
        plus, minus = (x2 + z2) ** 2 % PRIME, (x2 - z2) ** 2 % PRIME
        left, right = (x3 - z3) * (x2 + z2) % PRIME, (x3 + z3) * (x2 - z2) % PRIME
        x3, z3 = (left + right) ** 2 % PRIME, start * (left - right) ** 2 % PRIME
        x2, z2 = plus * minus % PRIME, (plus - minus) * (plus + 121665 * (plus - minus)) % PRIME
        if swap:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, PRIME - 2, PRIME) % PRIME).to_bytes(32, "little")


def chacha_block(key: bytes, number: int) -> bytes:
    """A block of ChaCha20 as in RFC 8439, section 2.3, with a nonce of zeros."""
    words = [int.from_bytes((b"expand 32-byte k" + key)[4 * place :][:4], "little") for place in range(12)]
    start = [*words, number, 0, 0, 0]
    state = list(start)
    columns = [(0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)]
    diagonals = [(0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)]
    for a, b, c, d in (columns + diagonals) * 10:
        for first, second, third, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[first] = (state[first] + state[second]) % 2**32
            mixed = state[third] ^ state[first]
            state[third] = (mixed << turn | mixed >> (32 - turn)) % 2**32
    return b"".join(((one + two) % 2**32).to_bytes(4, "little") for one, two in zip(state, start, strict=True))
