"""Transactions of several banks, simulated: the financial scenario, at the size and shape that the paper describes.

The unit is the account. A clock is drawn first (hour, weekday and minutes since the last transaction agree), then the
channel at that hour, then kind, counterparty, region and amount, each given what came before. `risk` is high where one
of a few known patterns of misuse is likely, most of them interactions or U-shapes, and then only by chance: the chance
and a propensity of the account that no column shows are noise that no model removes.

The bounds and categories below are stated, and values are clamped to them, so that a study may take them as public.
Nothing here was fitted to a real customer, and no figure of it says anything about a real bank.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from simulations.scenarios.drawing import Codes, Flags, Floats, above, draw, sigmoid

CATEGORIES: Final[Mapping[str, tuple[str, ...]]] = {
    "weekday": ("mon", "tue", "wed", "thu", "fri", "sat", "sun"),
    "account_type": ("current", "savings", "student", "premium", "business"),
    "channel": ("branch", "atm", "terminal", "online", "mobile", "phone"),
    "transaction_type": ("card_payment", "transfer_out", "transfer_in", "direct_debit", "withdrawal", "cash_deposit"),
    "counterparty": (
        *("self", "household", "merchant", "employer", "public_body", "firm"),
        *("foreign_bank", "crypto_exchange", "gambling"),
    ),
    "counterparty_region": ("domestic", "neighbour", "abroad", "high_risk"),
    "risk": ("low", "high"),
}
"""Every category that a column can hold, in the order of its codes."""

BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "amount": (0.01, 1_000_000.0),  # currency units
    "balance": (-100_000.0, 10_000_000.0),  # currency units
    "hour": (0, 23),
    "account_age_months": (0, 480),
    "holder_age": (18, 100),  # years
    "minutes_since_last": (1, 527_040),  # up to 366 days
    "prior_alerts": (0, 20),
}
"""Smallest and largest value of each numeric column, both included; the simulator clamps to them."""

MOST_TRANSACTIONS: Final = 8
"""No account has more."""

MOST_BANKS: Final = 26
"""As many as there are letters to name them."""


@dataclass(frozen=True)
class _Bank:
    """What makes one bank unlike another; `types` and `channels` are weights in the order of `CATEGORIES`."""

    share: float  # of all accounts, before normalising
    holder_age: float  # mean, years
    account_age: float  # mean, months
    types: tuple[float, ...]
    channels: tuple[float, ...]
    log_odds: float  # of high risk, on top of what the patterns say


_BANKS: Final = (
    _Bank(0.40, 46, 120, (0.58, 0.24, 0.05, 0.07, 0.06), (0.08, 0.14, 0.30, 0.22, 0.22, 0.04), -0.1),  # high street
    _Bank(0.25, 33, 26, (0.70, 0.10, 0.12, 0.06, 0.02), (0.00, 0.08, 0.28, 0.14, 0.49, 0.01), 0.5),  # application only
    _Bank(0.21, 57, 190, (0.46, 0.42, 0.03, 0.04, 0.05), (0.22, 0.20, 0.30, 0.12, 0.08, 0.08), -0.3),  # rural savings
    _Bank(0.14, 49, 90, (0.22, 0.14, 0.01, 0.23, 0.40), (0.08, 0.04, 0.16, 0.50, 0.15, 0.07), 0.1),  # commercial
)

# Weights of transaction types, one row a channel.
_TYPES_BY_CHANNEL: Final = np.array(
    [
        [0.00, 0.25, 0.20, 0.00, 0.25, 0.30],  # branch
        [0.00, 0.00, 0.00, 0.00, 0.88, 0.12],  # atm
        [0.97, 0.00, 0.00, 0.00, 0.03, 0.00],  # terminal
        [0.34, 0.28, 0.18, 0.20, 0.00, 0.00],  # online
        [0.36, 0.36, 0.20, 0.08, 0.00, 0.00],  # mobile
        [0.20, 0.60, 0.10, 0.10, 0.00, 0.00],  # phone
    ]
)

# Weights of counterparties, one row a transaction type.
_PARTIES_BY_TYPE: Final = np.array(
    [
        [0.00, 0.00, 0.88, 0.00, 0.02, 0.03, 0.00, 0.02, 0.05],  # card_payment
        [0.14, 0.42, 0.04, 0.00, 0.08, 0.16, 0.08, 0.06, 0.02],  # transfer_out
        [0.10, 0.28, 0.02, 0.34, 0.10, 0.08, 0.05, 0.03, 0.00],  # transfer_in
        [0.00, 0.06, 0.22, 0.00, 0.22, 0.49, 0.00, 0.00, 0.01],  # direct_debit
        [1.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00, 0.00],  # withdrawal
        [0.82, 0.02, 0.00, 0.00, 0.00, 0.16, 0.00, 0.00, 0.00],  # cash_deposit
    ]
)

# Weights of regions, one row a counterparty.
_REGIONS_BY_PARTY: Final = np.array(
    [
        [0.960, 0.025, 0.012, 0.003],  # self
        [0.930, 0.045, 0.018, 0.007],  # household
        [0.860, 0.090, 0.040, 0.010],  # merchant
        [0.970, 0.025, 0.005, 0.000],  # employer
        [0.990, 0.010, 0.000, 0.000],  # public_body
        [0.880, 0.080, 0.030, 0.010],  # firm
        [0.000, 0.450, 0.360, 0.190],  # foreign_bank
        [0.150, 0.250, 0.380, 0.220],  # crypto_exchange
        [0.450, 0.150, 0.250, 0.150],  # gambling
    ]
)

_LOG_AMOUNT_BY_TYPE: Final = np.array([3.3, 5.2, 6.1, 4.3, 4.4, 6.0])
_LOG_BALANCE_BY_TYPE: Final = np.array([7.3, 8.8, 5.8, 9.9, 9.4])
_OVERDRAFT_BY_TYPE: Final = np.array([0.14, 0.00, 0.20, 0.05, 0.16])

# Weights of the 24 hours, for private holders and for firms; even private holders are seldom awake before six.
_HOURS: Final = np.array(
    [
        [1.2, 0.9, 0.7, 0.5, 0.5, 0.7, 1.5, 3, 5, 6, 6.5, 7, 7.5, 7, 6, 6, 6.5, 7.5, 8, 7, 5.5, 4.5, 3, 2],
        [0.4, 0.3, 0.3, 0.3, 0.3, 0.6, 2.0, 5, 9, 11, 11, 10, 7, 9, 10, 9, 8, 5, 2.5, 1.5, 1, 0.8, 0.6, 0.5],
    ]
)


@dataclass(frozen=True)
class _Accounts:
    """One entry an account; each (accounts,). `propensity`, a standard normal, is shown by no column."""

    bank: Codes
    profile: Codes
    kind: Codes  # account type
    holder_age: Codes  # years
    age_is_missing: Flags
    months: Codes
    log_balance: Floats  # log of currency units
    prior_alerts: Codes
    propensity: Floats


@dataclass(frozen=True)
class _Clock:
    """When each transaction happens; each (transactions,), in time within an account, account after account."""

    account: Codes  # position in _Accounts
    hour: Codes
    weekday: Codes
    minutes: Floats  # since the account's last transaction, NaN for its first


@dataclass(frozen=True)
class _Deeds:
    """What each transaction is; each (transactions,)."""

    channel: Codes
    kind: Codes  # transaction type
    party: Codes
    region: Codes
    amount: Floats  # currency units
    balance: Floats  # currency units


def simulate_transactions(*, seed: int, accounts: int = 30_000, banks: int = 4) -> pd.DataFrame:
    """Simulate a table of transactions as text, as a CSV file holds it; an empty cell is a missing value.

    Guarantees: the same arguments give the same table; every account has 1 to MOST_TRANSACTIONS rows, next to each
    other and in time, and is at one bank; every cell obeys CATEGORIES and BOUNDS.
    Edge cases: fewer accounts than banks -> some banks have no row; more banks than four -> their characters repeat.

    Args:
        seed: of everything that is drawn.
        accounts: units, over all banks; >= 1. There are about four times as many rows.
        banks: sites, named bank_a, bank_b, ...; 1 to MOST_BANKS. The column `bank` is for splitting, not for learning.
    Returns:
        (transactions, 16) of dtype str: account, bank, 13 features, risk.
    Raises:
        ValueError: accounts or banks is out of its range.
    """
    if accounts < 1:
        raise ValueError(f"accounts={accounts}: expected >= 1")
    if not 1 <= banks <= MOST_BANKS:
        raise ValueError(f"banks={banks}: expected 1 to {MOST_BANKS}")
    generator = np.random.default_rng(seed)
    holders = _draw_accounts(generator, accounts, banks)
    clock = _draw_clock(generator, holders)
    deeds = _draw_deeds(generator, holders, clock)
    chance = sigmoid(_log_odds(holders, clock, deeds))
    risk = (generator.random(len(chance)) < chance).astype(np.int64)
    keys = generator.choice(2**40, size=accounts, replace=False)
    return _write(keys, holders, clock, deeds, risk)


def simulate_accounts(*, seed: int, accounts: int = 100_000, banks: int = 4) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The same banks seen by account: what an account is, and its transactions in order.

    Guarantees: as `simulate_transactions`, of which it is another view; every account is in both tables; `risk` of an
    account is high if that of one of its transactions is, and the transactions do not say which.

    Args:
        seed: of everything that is drawn.
        accounts: units, over all banks; >= 1.
        banks: sites; 1 to MOST_BANKS.
    Returns:
        records, (accounts, 7) of dtype str: account, bank, 4 features, risk; and transactions, (transactions, 10) of
        dtype str: account, minute (since the account's first transaction), 8 channels. The time since the last
        transaction is not a column: it follows from `minute`.
    Raises:
        ValueError: accounts or banks is out of its range.
    """
    table = simulate_transactions(seed=seed, accounts=accounts, banks=banks)
    gap = pd.to_numeric(table["minutes_since_last"]).fillna(0).astype(np.int64)
    minute = gap.groupby(table["account"], sort=False).cumsum().astype(str)
    channels = ["amount", "balance", "hour", "weekday", "channel", "transaction_type", "counterparty"]
    series = table[["account", *channels, "counterparty_region"]].copy()
    series.insert(1, "minute", minute.astype("str"))
    own = ["account", "bank", "account_type", "account_age_months", "holder_age", "prior_alerts"]
    records = table.drop_duplicates("account")[own].reset_index(drop=True)
    suspicious = records["account"].isin(table.loc[table["risk"] == "high", "account"])
    records["risk"] = pd.Series(np.where(suspicious, "high", "low"), dtype="str")
    return records, series


def _draw_accounts(generator: np.random.Generator, accounts: int, banks: int) -> _Accounts:
    shares = np.array([_BANKS[bank % len(_BANKS)].share for bank in range(banks)])
    bank = generator.choice(banks, size=accounts, p=shares / shares.sum())
    profile = bank % len(_BANKS)
    mean_age = np.array([character.holder_age for character in _BANKS])[profile]
    # A gamma law: nobody below 18, a long tail of old holders.
    age = _whole(18 + generator.gamma(3.0, (mean_age - 18) / 3.0), "holder_age")
    kind = _draw_account_types(generator, profile, age)
    firm = _is(kind, "account_type", "business")
    propensity = generator.standard_normal(accounts)
    scatter = generator.standard_normal(accounts)
    return _Accounts(
        bank=bank,
        profile=profile,
        kind=kind,
        holder_age=age,
        age_is_missing=generator.random(accounts) < np.where(firm, 0.25, 0.03),
        months=_draw_months(generator, profile, age, kind),
        log_balance=_LOG_BALANCE_BY_TYPE[kind] + 0.015 * (age - 45) + 0.9 * scatter,
        prior_alerts=_whole(generator.poisson(np.exp(-2.5 + 1.2 * propensity)), "prior_alerts"),
        propensity=propensity,
    )


def _draw_account_types(generator: np.random.Generator, profile: Codes, age: Codes) -> Codes:
    weights = np.array([character.types for character in _BANKS])[profile]
    by_age = np.ones_like(weights)
    by_age[:, 1] = age / 45
    by_age[:, 2] = 8 * np.exp(-(age - 18) / 4.0)
    by_age[:, 3] = np.clip((age - 22) / 25, 0, 1.5)
    by_age[:, 4] = np.exp(-(((age - 46) / 18.0) ** 2))
    return draw(generator, weights * by_age)


def _draw_months(generator: np.random.Generator, profile: Codes, age: Codes, kind: Codes) -> Codes:
    """Draw the age of each account: none was opened before its holder was fifteen, nor a student's six years ago."""
    mean = np.array([character.account_age for character in _BANKS])[profile]
    student = _is(kind, "account_type", "student")
    oldest = np.minimum(12 * (age - 15), np.where(student, 72, 12 * age))
    drawn = generator.gamma(1.1, mean / 1.1)
    # Modulo, not a minimum: a heap of accounts at their oldest would be an artefact.
    return _whole(np.mod(drawn, oldest), "account_age_months")


def _draw_clock(generator: np.random.Generator, accounts: _Accounts) -> _Clock:
    # A beta law for the rate skews the counts: most accounts have a few, some have eight.
    rate = generator.beta(1.3, 1.7, len(accounts.bank))
    counts = 1 + generator.binomial(MOST_TRANSACTIONS - 1, rate)
    account = np.repeat(np.arange(len(counts)), counts)
    starts = np.cumsum(counts) - counts
    time = _draw_times(generator, accounts, account, starts)
    time = time[np.lexsort((time, account))]  # within each account; `account` itself is sorted already
    minutes = _clamp(np.diff(time, prepend=time[0]).astype(np.float64), "minutes_since_last")
    minutes[starts] = np.nan
    return _Clock(account, time // 60 % 24, time // 1440 % 7, minutes)


def _draw_times(generator: np.random.Generator, accounts: _Accounts, account: Codes, starts: Codes) -> Codes:
    """Minutes since a Monday's midnight, (transactions,), in no order within an account."""
    size = len(account)
    firm = _is(accounts.kind, "account_type", "business")[account]
    days_seen = np.clip(np.exp(generator.normal(3.3, 1.3, len(starts))), 1, 360)  # how long an account is watched
    first_day = generator.integers(0, 7, len(starts))
    day = first_day[account] + np.floor(generator.random(size) * days_seen[account]).astype(np.int64)
    # Most of what a firm would do at a weekend it did on the Friday before.
    moved = firm & (day % 7 >= 5) & (generator.random(size) < 0.8)
    day -= moved * (day % 7 - 4)
    hour = draw(generator, _HOURS[firm.astype(np.int64)])
    time = 1440 * day + 60 * hour + generator.integers(0, 60, size)
    # Some transactions come in bursts: minutes after another one of the account, whatever the hour.
    burst = time[starts[account]] + np.ceil(generator.exponential(25.0, size)).astype(np.int64)
    return np.asarray(np.where(generator.random(size) < 0.12, burst, time))


def _draw_deeds(generator: np.random.Generator, accounts: _Accounts, clock: _Clock) -> _Deeds:
    channel = _draw_channels(generator, accounts, clock)
    kind = draw(generator, _TYPES_BY_CHANNEL[channel])
    party = _draw_parties(generator, accounts, clock, kind)
    region = draw(generator, _REGIONS_BY_PARTY[party])
    amount = _draw_amounts(generator, accounts, clock, kind, party)
    return _Deeds(channel, kind, party, region, amount, _draw_balances(generator, accounts, clock))


def _draw_channels(generator: np.random.Generator, accounts: _Accounts, clock: _Clock) -> Codes:
    """Draw from the bank's mix, bent by opening hours, shops' hours and the holder's age."""
    weights = np.array([character.channels for character in _BANKS])[accounts.profile[clock.account]]
    age = accounts.holder_age[clock.account]
    weights[:, 0] *= (clock.hour >= 9) & (clock.hour < 17) & (clock.weekday < 5)
    weights[:, 2] *= np.where((clock.hour >= 7) & (clock.hour < 23), 1.0, 0.1)
    weights[:, 3] *= np.where(clock.weekday < 5, 1.0, 0.7)
    weights[:, 4] *= np.exp(-(age - 40) / 25.0)
    weights[:, 5] *= ((clock.hour >= 7) & (clock.hour < 22)) * np.exp((age - 50) / 30.0)
    return draw(generator, weights)


def _draw_parties(generator: np.random.Generator, accounts: _Accounts, clock: _Clock, kind: Codes) -> Codes:
    weights = _PARTIES_BY_TYPE[kind]
    age = accounts.holder_age[clock.account]
    firm = _is(accounts.kind, "account_type", "business")[clock.account]
    weights[:, 1] *= np.where(firm, 0.1, 1.0)
    weights[:, 3] *= np.where(firm, 0.0, np.where(age < 67, 1.0, 0.1))
    weights[:, 4] *= np.where(age < 67, 1.0, 4.0)  # pensions
    weights[:, 5] *= np.where(firm, 5.0, 1.0)
    weights[:, 7] *= np.exp(-(age - 35) / 18.0)
    weights[:, 8] *= np.exp(-np.abs(age - 35) / 20.0)
    return draw(generator, weights)


def _draw_amounts(
    generator: np.random.Generator, accounts: _Accounts, clock: _Clock, kind: Codes, party: Codes
) -> Floats:
    """Log-normal given type, party and wealth; cash comes in tens, and some deposits stay just below 10 000."""
    wealth = accounts.log_balance[clock.account] - 8.0
    firm = _is(accounts.kind, "account_type", "business")[clock.account]
    far = _is(party, "counterparty", "foreign_bank", "crypto_exchange")
    mean = _LOG_AMOUNT_BY_TYPE[kind] + 0.4 * wealth + 0.5 * firm + 0.7 * far
    amount = np.exp(generator.normal(mean, 1.1))
    # Trial payments, which also honest merchants make.
    trial = (kind == 0) & (generator.random(len(kind)) < 0.035)
    amount = np.where(trial, generator.uniform(0.1, 2.0, len(kind)), amount)
    below = _is(kind, "transaction_type", "cash_deposit") & (generator.random(len(kind)) < 0.08)
    amount = np.where(below, 10_000 * (1 - 0.25 * generator.beta(1.0, 3.0, len(kind))), amount)
    cash = _is(kind, "transaction_type", "withdrawal", "cash_deposit")
    return _clamp(np.where(cash, np.maximum(np.floor(amount / 10) * 10, 10), amount), "amount")


def _draw_balances(generator: np.random.Generator, accounts: _Accounts, clock: _Clock) -> Floats:
    """Draw what is on the account at the time: around its own level, or overdrawn by a part of it."""
    size = len(clock.account)
    held = np.exp(accounts.log_balance[clock.account] + generator.normal(0.0, 0.45, size))
    owed = held**0.9 * generator.uniform(0.02, 0.5, size)
    overdrawn = generator.random(size) < _OVERDRAFT_BY_TYPE[accounts.kind[clock.account]]
    return _clamp(np.where(overdrawn, -owed, held), "balance")


def _log_odds(accounts: _Accounts, clock: _Clock, deeds: _Deeds) -> Floats:
    """Log odds of high risk, (transactions,): plain effects, which a linear model finds, and the patterns."""
    owner = clock.account
    bank = np.array([character.log_odds for character in _BANKS])[accounts.profile[owner]]
    history = 1.4 * np.log1p(accounts.prior_alerts[owner]) + 0.3 * accounts.propensity[owner]
    trade = 1.0 * _is(deeds.party, "counterparty", "crypto_exchange", "foreign_bank") + 0.8 * _is_away(deeds)
    patterns = _cash_patterns(deeds) + _account_patterns(accounts, clock, deeds)
    patterns += _transfer_patterns(accounts, clock, deeds)
    # -6.1: with it about three transactions in a hundred are of high risk.
    return -6.1 + bank + history + trade + 0.4 * _is_remote(deeds) + patterns


def _cash_patterns(deeds: _Deeds) -> Floats:
    """Log odds, (transactions,), of amounts that are chosen not to be noticed."""
    # Deposits kept below what must be reported; larger and smaller ones are unremarkable.
    deposit = _is(deeds.kind, "transaction_type", "cash_deposit")
    structured = deposit & (deeds.amount >= 7_500) & (deeds.amount < 10_000)
    # A stolen card is tried with a trifle.
    tried = _is(deeds.kind, "transaction_type", "card_payment") & _is_remote(deeds) & (deeds.amount < 2.0)
    return 7.5 * structured + 5.2 * tried


def _account_patterns(accounts: _Accounts, clock: _Clock, deeds: _Deeds) -> Floats:
    """Log odds, (transactions,), of accounts that were taken over or opened for misuse."""
    # An account taken over is emptied abroad, at night or in one large piece.
    night = (clock.hour < 6) | (clock.hour >= 23)
    taken = 7.0 * (night & _is_remote(deeds)) + 5.0 * _largeness(deeds)
    # A mule account is opened to turn money into crypto; an account of more than a year that does so is common.
    new = 1 - above(np.log1p(accounts.months[clock.account]), 2.3, 0.2)
    return taken * _is_away(deeds) + 7.5 * new * _is(deeds.party, "counterparty", "crypto_exchange")


def _transfer_patterns(accounts: _Accounts, clock: _Clock, deeds: _Deeds) -> Floats:
    """Log odds, (transactions,), of remote transfers: two U-shapes, in the time since the last one and in age."""
    transfer = _is(deeds.kind, "transaction_type", "transfer_out") & _is_remote(deeds)
    large = _largeness(deeds)
    # Rapid ones, or a large one after months of silence; the first of an account is neither.
    gap = np.log(np.nan_to_num(clock.minutes, nan=1440.0))
    sudden = np.maximum(1 - above(gap, 3.2, 0.2), large * above(gap, 11.0, 0.2))
    # The young and the old are talked into large ones.
    age = accounts.holder_age[clock.account]
    talked_into = large * np.maximum(1 - above(age, 23.0, 1.0), above(age, 72.0, 1.5))
    return transfer * (5.6 * sudden + 5.5 * talked_into)


def _largeness(deeds: _Deeds) -> Floats:
    """0 to 1, how large an amount is beside the balance; one half where it is about two fifths of it."""
    return above(np.log(deeds.amount / (np.abs(deeds.balance) + 200.0)), -0.9, 0.2)


def _is_remote(deeds: _Deeds) -> Flags:
    return _is(deeds.channel, "channel", "online", "mobile", "phone")


def _is_away(deeds: _Deeds) -> Flags:
    return _is(deeds.region, "counterparty_region", "abroad", "high_risk")


def _write(keys: Codes, accounts: _Accounts, clock: _Clock, deeds: _Deeds, risk: Codes) -> pd.DataFrame:
    """All columns as text, in the order of the table."""
    owner = clock.account
    names = [f"bank_{chr(ord('a') + bank)}" for bank in range(MOST_BANKS)]
    age = np.where(accounts.age_is_missing, np.nan, accounts.holder_age)[owner]
    columns = {
        "account": np.array([f"{key:010x}" for key in keys.tolist()], dtype=object)[owner],
        "bank": np.array(names, dtype=object)[accounts.bank[owner]],
        "amount": _numbers(deeds.amount, 2),
        "balance": _numbers(deeds.balance, 2),
        "hour": _numbers(clock.hour, 0),
        "weekday": _names(clock.weekday, "weekday"),
        "account_type": _names(accounts.kind[owner], "account_type"),
        "channel": _names(deeds.channel, "channel"),
        "transaction_type": _names(deeds.kind, "transaction_type"),
        "counterparty": _names(deeds.party, "counterparty"),
        "counterparty_region": _names(deeds.region, "counterparty_region"),
        "account_age_months": _numbers(accounts.months[owner], 0),
        "holder_age": _numbers(age, 0),
        "minutes_since_last": _numbers(clock.minutes, 0),
        "prior_alerts": _numbers(accounts.prior_alerts[owner], 0),
        "risk": _names(risk, "risk"),
    }
    return pd.DataFrame(columns, dtype="str")


def _names(codes: Codes, column: str) -> NDArray[np.object_]:
    return np.array(CATEGORIES[column], dtype=object)[codes]


def _numbers(values: ArrayLike, decimals: int) -> list[str]:
    """Plain decimal text, NaN as the empty cell."""
    return ["" if math.isnan(value) else f"{value:.{decimals}f}" for value in np.asarray(values).tolist()]


def _is(codes: Codes, column: str, *names: str) -> Flags:
    """Which codes of a column stand for one of the names."""
    wanted = [CATEGORIES[column].index(name) for name in names]
    return np.isin(codes, wanted)


def _clamp(values: Floats, column: str) -> Floats:
    return np.clip(values, *BOUNDS[column])


def _whole(values: ArrayLike, column: str) -> Codes:
    return np.asarray(np.floor(np.clip(np.asarray(values), *BOUNDS[column])), dtype=np.int64)
