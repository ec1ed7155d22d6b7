"""What a steward consents to, and how consent ends: `preview`, `approve`, `withdraw`."""

import json
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from client.commands.place import now, say, settings_of
from client.consent import Withdrawal, check_consent, read_withdrawal, set_aside, withdrawal_path
from client.consent import withdraw as take_back
from client.keys import identity, make_identity
from client.policy import PolicyFile, SitePolicy, SiteSettings, policy_digest, read_policy, sign_policy, today_utc
from common.commands import Commands, fail, show
from common.errors import ExitCode, PolicyError, PrivShareError
from common.privacy.ledger import read_ledger
from common.study import Study, load_study

if TYPE_CHECKING:
    from client.preview import Preview

app = Commands()
_Json = Annotated[bool, typer.Option("--json", help="As one JSON object.")]


@app.command()
def preview(context: typer.Context, *, json_output: _Json = False) -> None:
    """What would leave this site in a run of its study, message by message, and what never does. Reads no row."""
    settings = settings_of(context)
    try:
        found = _terms(settings).preview(settings)
    except PrivShareError as error:
        fail(error)
    if json_output:
        typer.echo(json.dumps(found.as_dict(), allow_nan=False))
        return
    _show_preview(found)


@app.command()
def approve(
    context: typer.Context,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; sign.")] = False,
    after_withdrawal: Annotated[
        bool, typer.Option("--after-withdrawal", help="Consent anew, though consent was withdrawn.")
    ] = False,
) -> None:
    """Show what the policy and its study allow, to whom, and sign the policy once the site's name is typed."""
    settings = settings_of(context)
    try:
        terms = _terms(settings)
        withdrawal = read_withdrawal(settings.policy)
        if not after_withdrawal:
            check_consent(settings.policy)
        facts = terms.facts(settings)
    except PrivShareError as error:
        fail(error)
    show({name.replace("_", " "): term for name, term in facts.items()}, title=terms.study.name)
    if withdrawal is not None:
        say(f"consent was withdrawn on {withdrawal.made:%Y-%m-%d}; this is a new one")
    if not yes and typer.prompt("To sign this, type the site's name", err=True) != settings.site:
        typer.echo("not signed: that is not the site's name", err=True)
        raise typer.Exit(1)
    try:
        key = make_identity(settings.state)
        sign_policy(settings.policy, key)
        set_aside(settings.policy, now=now())
    except OSError as error:
        fail(PolicyError(f"{settings.policy}: cannot be signed ({error.strerror})"))
    except PrivShareError as error:
        fail(error)
    typer.echo(f"signed {settings.policy} as {key.public}")


@app.command()
def withdraw(
    context: typer.Context, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False
) -> None:
    """End this site's consent: the next request is refused, also by a site that runs, and it does not start again.

    What was released before cannot be taken back. It stays covered by the guarantee, and counted by the ledger.
    """
    settings = settings_of(context)
    if not yes and typer.prompt("To end consent, type the site's name", err=True) != settings.site:
        typer.echo("nothing was changed: that is not the site's name", err=True)
        raise typer.Exit(1)
    try:
        policy = read_policy(settings.policy)
        record = Withdrawal(
            site=settings.site, study=policy.approved, policy=policy_digest(settings.policy), made=now()
        )
        made = take_back(settings.policy, record, identity(settings.state)).made
    except PrivShareError as error:
        fail(error)
    say(
        f"consent ended on {made:%Y-%m-%d at %H:%M:%S} UTC: {withdrawal_path(settings.policy)}",
        "from now on every request is refused and costs nothing; a step that is being computed is still answered",
        "what was released before cannot be taken back: others have it, and the generator learned from it. It stays "
        "covered by the guarantee, and the ledger counts it for ever: `privshare-client ledger show`",
        f"tell the coordinator, who sees {ExitCode.CONSENT_WITHDRAWN.name}. Consent anew: privshare-client approve "
        "--after-withdrawal",
    )


@dataclass(frozen=True)
class _Terms:
    """What a steward is asked to sign."""

    study: Study
    policy: PolicyFile
    bound: SitePolicy

    def preview(self, settings: SiteSettings) -> "Preview":
        from client.preview import preview as look_ahead  # noqa: PLC0415 (torch, for the sizes of networks)

        return look_ahead(self.study, self.bound, site=settings.site, peers=len(self.policy.peers))

    def facts(self, settings: SiteSettings) -> dict[str, str]:
        study, policy = self.study, self.policy
        epsilon, delta = self.bound.limits
        return {
            "purpose": study.purpose or "the study does not say",
            "digest": study.digest(),
            "protects": f"each {study.unit.name}, by {study.unit.key or 'record'}: add or remove one",
            "this_study": f"at most epsilon {epsilon:g}, delta {delta:g}",
            "all_studies": f"at most epsilon {policy.total_epsilon:g}, delta {policy.total_delta:g}, for ever",
            "left_after_this_study": _left_after(settings, self),
            "columns": ", ".join([*study.columns, *study.channels]),
            "until": str(policy.expires or "no end"),
            **_recipients(self.preview(settings)),
            "published": f"a generator, synthetic rows and a certificate that names {settings.site}",
            "confirmed_by": ", ".join(sorted(policy.peers)) or "nobody: a ledger that was restored is not noticed",
            "noise_at_least": _floor(policy),
        }


def _terms(settings: SiteSettings) -> _Terms:
    study, policy = load_study(settings.study), read_policy(settings.policy)
    return _Terms(study, policy, SitePolicy(settings, policy, study, today=today_utc))


def _recipients(found: "Preview") -> dict[str, str]:
    """Who gets what, a line for each circle of readers."""
    readers: dict[str, list[str]] = {}
    for line in found.lines:
        readers.setdefault(line.readers, []).append(line.kind)
    return {f"read by {circle}": ", ".join(kinds) for circle, kinds in readers.items()}


def _left_after(settings: SiteSettings, terms: _Terms) -> str:
    """What all studies together have left once this one has spent all that it may."""
    total = terms.bound.asset.bound
    spent = Fraction(0)
    if settings.ledger.exists():
        book = read_ledger(settings.ledger)
        spent = sum((book.worst(study) for study in book.bounds if study != terms.study.digest()), spent)
    return f"{max(0.0, 1 - (float(spent) + terms.bound.bound) / total):.2%} of the budget of all studies"


def _floor(policy: PolicyFile) -> str:
    return f"{policy.least_noise:g} times what one unit changes" if policy.least_noise else "no least noise"


def _show_preview(found: "Preview") -> None:
    sizes = Table(title=escape(f"{found.study}: one run over {found.sites} sites"))
    sizes.add_column("message")
    for heading in ("times", "bytes each", "of the budget", "noise"):
        sizes.add_column(heading, justify="right")
    meanings = Table("message", f"what it says of one {found.unit}", "who can read it", show_lines=True)
    for line in found.lines:
        share = f"{line.share:.0%} {line.account}" if line.account else "nothing"
        noise = "" if line.noise is None else f"{line.noise:.3g}"
        size = f"{'' if line.is_exact else 'about '}{line.bytes:,}"
        sizes.add_row(*map(escape, (line.kind, f"{line.times:,}", size, share, noise)))
        meanings.add_row(*map(escape, (line.kind, line.says, line.readers)))
    console = Console()
    console.print(sizes, meanings)
    say(
        f"all of it together costs each {found.unit} at most epsilon {found.epsilon:g} at delta {found.delta:g}: a "
        f"{found.unit} trains or is held out, and pays from one of the two accounts",
        "noise: standard deviation, in multiples of what one unit can change in the message",
        "a message that is asked again is answered with the same bytes, and costs nothing",
    )
    for never in found.as_dict()["never"]:
        say(f"never leaves: {never}")
