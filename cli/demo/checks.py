"""What the demo claims, compared one by one; what did not hold is named at the end."""

import msgspec

from cli.output import Output


class Check(msgspec.Struct, frozen=True):
    """One claim: what was expected and what came."""

    name: str
    held: bool
    expected: object
    got: object


class Checks:
    """All claims of one run."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.all: list[Check] = []

    def equal(self, name: str, expected: object, got: object) -> None:
        """Claim that two values are the same."""
        self._add(Check(name, expected == got, expected, got))

    def at_least(self, name: str, least: float, got: float) -> None:
        """Claim that a figure is not below a bound."""
        self._add(Check(name, got >= least, f"at least {least:g}", got))

    def at_most(self, name: str, most: float, got: float) -> None:
        """Claim that a figure is not above a bound."""
        self._add(Check(name, got <= most, f"at most {most:g}", got))

    @property
    def failed(self) -> list[Check]:
        """The claims that did not hold."""
        return [check for check in self.all if not check.held]

    def _add(self, check: Check) -> None:
        self.all.append(check)
        if not check.held:
            self._output.warn(f"DID NOT HOLD: {check.name}: expected {check.expected}, got {check.got}")
