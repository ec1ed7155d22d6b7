"""All checks, in the order in which they are made: papers, machine, data, network. A new one is added to its list."""

from typing import Final

from client.doctor import data, machine, network, papers
from client.doctor.checkup import Check

CHECKS: Final[tuple[Check, ...]] = (*papers.CHECKS, *machine.CHECKS, *data.CHECKS, *network.CHECKS)
