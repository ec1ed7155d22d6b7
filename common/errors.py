"""Every error that an operator can act on, and its exit code.

PrivShareError
  StudyError       study.yaml or site.yaml says what it may not
  SchemaError      a table is not what its schema says
  SourceError      a database of a site cannot be read
  PrivacyError     BudgetError (refused before any draw), LedgerError
  ProtocolError    malformed, wrong study, wrong round; TooFewSitesError, UntrustedError
  MembershipError  a kit, an enrolment or an admission is not what it should be
  UnreachableError the coordinator cannot be reached
  PolicyError      the site said no
  ReleaseError     a gate failed before publication
  ReleaseFileError the folder of a release is not what it should be
  ConditionError   rows were asked for that a release cannot give
  CheckpointError  a run cannot be resumed from what is on disk
  StoppedError     a run was asked to stop, and did
  OutputError      a result cannot be written

Messages name the field and the rule. They never hold a cell, a unit's key or a count taken from a real table: errors
end up in logs and in tickets. Programmers' slips are ValueError and TypeError and are not in this tree.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What a command ends with. The number is stable; Flower's own codes (0-3, 100-800) are avoided above 2.

    10-19 the study, 20-29 privacy and policy, 30-49 the table, 50-59 the run, 60-67 windows, 68 a kit,
    69 a run that was asked to stop, 70 a fault of ours, 71-79 a release and rows from it, 80-89 a site's database.
    """

    OK = 0
    USAGE = 2
    STUDY_NOT_FOUND = 10
    STUDY_INVALID = 11
    EPSILON_INVALID = 12
    DELTA_INVALID = 13
    BUDGET_REFUSED = 20
    POLICY_REFUSED = 21
    LEDGER_INVALID = 22
    AUDIT_CONTRADICTED = 23
    UNCONFIRMED = 24
    UNTRUSTED = 25
    UNMASKED = 26
    GATE_FAILED = 27
    CONSENT_WITHDRAWN = 28
    TABLE_NOT_FOUND = 30
    TABLE_EMPTY = 31
    TABLE_WITHOUT_ROWS = 32
    TOO_FEW_UNITS = 33
    COLUMN_MISSING = 34
    COLUMN_UNKNOWN = 35
    NOT_A_NUMBER = 36
    OUT_OF_BOUNDS = 37
    UNLISTED_CATEGORY = 38
    NOT_FINITE = 39
    MISSING_NOT_ALLOWED = 40
    CONSTANT_COLUMN = 41
    SINGLE_CLASS_LABEL = 42
    UNIT_REPEATED = 43
    SPLIT_COLUMN_UNKNOWN = 44
    MORE_SITES_THAN_UNITS = 45
    TABLE_UNREADABLE = 46
    OUTPUT_NOT_WRITABLE = 50
    RESUME_IMPOSSIBLE = 51
    TOO_FEW_SITES = 52
    PROTOCOL = 53
    NO_ANSWER = 54
    UNREACHABLE = 55
    NOT_ADMITTED = 56
    CERTIFICATE_EXPIRED = 57
    FLOWER_UNTESTED = 58
    ALREADY_RUNNING = 59
    UNIT_UNKNOWN = 60
    UNIT_WITHOUT_STEPS = 61
    WINDOW_TOO_LONG = 62
    WINDOW_TOO_SHORT = 63
    NOT_A_TIME = 64
    TIME_ZONE_MIXED = 65
    TIME_UNSORTED = 66
    TIME_REPEATED = 67
    KIT_INVALID = 68
    STOPPED = 69
    RELEASE_INVALID = 71
    CONDITION_INVALID = 72
    CONDITION_UNSUPPORTED = 73
    RELEASE_UNVERIFIED = 74
    SOURCE_UNREACHABLE = 80
    SOURCE_REFUSED = 81
    SOURCE_FAILED = 82
    SOURCE_TLS = 83
    SOURCE_NOT_INSTALLED = 84
    INTERNAL = 70


class PrivShareError(Exception):
    """Base of the tree; `code` is what the command line exits with."""

    code: ExitCode = ExitCode.INTERNAL

    def __init__(self, message: str, code: ExitCode | None = None) -> None:
        # One line, whatever name or value is in it: a key of a study or a site's name may hold anything.
        super().__init__("".join(letter if letter.isprintable() else " " for letter in message))
        if code is not None:
            self.code = code


class StudyError(PrivShareError):
    """A study or site file says what it may not."""

    code = ExitCode.STUDY_INVALID


class SchemaError(PrivShareError):
    """A table is not what its schema says. Names the column and the rule, never a value."""

    code = ExitCode.TABLE_UNREADABLE


class SourceError(PrivShareError):
    """A database of a site cannot be read. Says what to do, never what the database said."""

    code = ExitCode.SOURCE_UNREACHABLE


class PrivacyError(PrivShareError):
    """A privacy rule would be broken."""

    code = ExitCode.BUDGET_REFUSED


class BudgetError(PrivacyError):
    """The spend would pass the cap. Raised before anything is drawn or written."""


class LedgerError(PrivacyError):
    """The ledger cannot be read, written or trusted."""

    code = ExitCode.LEDGER_INVALID


class PolicyError(PrivShareError):
    """The site's own policy refuses the request."""

    code = ExitCode.POLICY_REFUSED


class ProtocolError(PrivShareError):
    """A message is malformed or belongs to another study."""

    code = ExitCode.PROTOCOL


class TooFewSitesError(ProtocolError):
    """Not enough sites answered."""

    code = ExitCode.TOO_FEW_SITES


class UntrustedError(ProtocolError):
    """Not signed by whoever it should be, or signed for something else."""

    code = ExitCode.UNTRUSTED


class MembershipError(PrivShareError):
    """A kit, an enrolment or an admission is not what it should be."""

    code = ExitCode.KIT_INVALID


class UnreachableError(PrivShareError):
    """The coordinator cannot be reached, or does not let this site in."""

    code = ExitCode.UNREACHABLE


class ReleaseError(PrivShareError):
    """A gate failed before publication: what was made stays unpublished."""

    code = ExitCode.GATE_FAILED


class ReleaseFileError(PrivShareError):
    """The folder of a release cannot be read, or is not what it should be."""

    code = ExitCode.RELEASE_INVALID


class ConditionError(PrivShareError):
    """Rows were asked for that a release cannot give."""

    code = ExitCode.CONDITION_INVALID


class CheckpointError(PrivShareError):
    """A run cannot be resumed from what is on disk."""

    code = ExitCode.RESUME_IMPOSSIBLE


class StoppedError(PrivShareError):
    """A run was asked to stop, and did between two steps; it can be started again, and goes on."""

    code = ExitCode.STOPPED


class OutputError(PrivShareError):
    """A result cannot be written where it was asked for."""

    code = ExitCode.OUTPUT_NOT_WRITABLE
