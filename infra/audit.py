"""``python -m infra.audit``: known vulnerabilities of the locked versions, as far as somebody here can be asked.

pip-audit asks PyPI, else OSV. Where neither answers, or a mirror knows no vulnerabilities, that is told as "not
checked" and is no failure: only a vulnerability that is found is one. ``infra/audit-ignored.yaml`` names those that
were looked at, each with a reason, and a date on which it is looked at again.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

FOLDER = Path(__file__).parent
LOCKS = (FOLDER / "requirements.lock", FOLDER / "requirements.cluster.lock")
IGNORED = FOLDER / "audit-ignored.yaml"
TOOL = "pip_audit"
OSV_URL = "SMOOTH_OSV_URL"  # of a mirror of OSV, which then is asked alone
SERVICES = ("pypi", "osv")
REQUEST_SECONDS = 10
AUDIT_SECONDS = 600.0
TEXT_LENGTH = 120
USAGE = 2  # exit status of options that pip-audit does not know
REFUSALS = ("ERROR:pip_audit._cli:requirement file", "ERROR:pip_audit._cli:invalid requirements input")


class NotCheckedError(RuntimeError):
    """Nobody could be asked; the message says why."""


class Vulnerability(BaseModel):
    """What pip-audit tells of one."""

    model_config = ConfigDict(frozen=True)

    id: str
    aliases: list[str] = []
    fix_versions: list[str] = []
    description: str = ""

    def told(self, package: str) -> str:
        """In one line."""
        mended = f"mended in {', '.join(self.fix_versions)}" if self.fix_versions else "no version mends it yet"
        names = f"{self.id} ({', '.join(self.aliases)})" if self.aliases else self.id
        return f"{package} has {names}; {mended}: {self.description[:TEXT_LENGTH]}"


class Dependency(BaseModel):
    """A locked version, and what is known of it."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class Ignored(BaseModel):
    """A vulnerability that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    package: str
    until: date
    why: str = Field(min_length=20)


def read_ignored(path: Path) -> list[Ignored]:
    """The list of those that were looked at.

    Raises:
        ValueError: an entry lacks its reason or its date.
    """
    try:
        return TypeAdapter(list[Ignored]).validate_python(yaml.safe_load(path.read_text()) or [])
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: each entry has id, package, until (a date) and why (a sentence): {error}") from error


def ask(locks: Sequence[Path], service: str, url: str | None = None) -> list[Dependency]:
    """What a service knows of all packages of the locks.

    Raises:
        NotCheckedError: it does not answer, or knows none of the packages.
    """
    if service == "pypi":  # each package is a request: a mirror that knows nothing is seen at the first
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as first:
            first.write(next(line for line in locks[0].read_text().splitlines() if "==" in line))
            first.flush()
            _run([Path(first.name)], service, url)
    return _run(locks, service, url)


def _run(locks: Sequence[Path], service: str, url: str | None) -> list[Dependency]:
    command = [
        *(sys.executable, "-m", TOOL, "--no-deps", "--disable-pip", "--progress-spinner=off", "--format=json"),
        *(f"--vulnerability-service={service}", f"--timeout={REQUEST_SECONDS}"),
        *(f"--requirement={lock}" for lock in locks),
        *([f"--osv-url={url}"] if url else []),
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=AUDIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise NotCheckedError(f"{service} took more than {AUDIT_SECONDS:.0f} s") from None
    try:
        report: dict[str, Any] = json.loads(result.stdout)
    except json.JSONDecodeError:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        refusals = [line for line in lines if line.startswith(REFUSALS)]
        if refusals or result.returncode == USAGE:
            told = (refusals or lines)[-1].strip()
            raise ValueError(f"pip-audit refuses the locks or its options: {told}") from None
        raise NotCheckedError(f"{service}: {lines[-1].strip() if lines else 'no answer'}") from None
    found = TypeAdapter(list[Dependency]).validate_python(report["dependencies"])
    if all(each.skip_reason for each in found):
        raise NotCheckedError(f"{service}: the index that answers for it knows nothing of these packages")
    return found


def judge(found: Sequence[Dependency], ignored: Sequence[Ignored], today: date) -> tuple[list[str], list[str]]:
    """Vulnerabilities that count, and notes."""
    errors, notes = [], []
    met = set()
    for each in found:
        for vulnerability in each.vulns:
            names = {vulnerability.id, *vulnerability.aliases}
            same = [one for one in ignored if canonicalize_name(one.package) == canonicalize_name(each.name)]
            looked_at = next((one for one in same if one.id in names), None)
            text = vulnerability.told(f"{each.name} {each.version}")
            if looked_at is not None:
                met.add(looked_at)
            if looked_at is None:
                errors.append(text)
            elif looked_at.until < today:
                errors.append(f"{text} (ignored until {looked_at.until}, which is over: look at it again)")
            else:
                notes.append(f"ignored until {looked_at.until}: {each.name}, {looked_at.id}: {looked_at.why}")
    notes += [
        f"{one.id} of {one.package} is no longer found: take it from the list" for one in ignored if one not in met
    ]
    if skipped := [each.name for each in found if each.skip_reason]:
        notes.append(f"{len(skipped)} packages are not checked, nobody knows them: {', '.join(skipped)}")
    return errors, notes


def check(locks: Sequence[Path]) -> list[Dependency]:
    """Ask PyPI, else OSV; a mirror that a variable names is asked alone.

    Raises:
        NotCheckedError: with the reasons of all.
    """
    if importlib.util.find_spec(TOOL) is None:
        raise NotCheckedError("pip-audit is not installed; `make setup` installs it")
    url = os.environ.get(OSV_URL)
    reasons = []
    for service in ("osv",) if url else SERVICES:
        try:
            return ask(locks, service, url)
        except NotCheckedError as reason:
            reasons.append(str(reason))
    raise NotCheckedError("; ".join(reasons))


def main(locks: Sequence[Path] = LOCKS, ignored: Path = IGNORED) -> int:
    """Run the command and return its exit code."""
    try:
        looked_at = read_ignored(ignored)
        found = check(locks)
    except ValueError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except NotCheckedError as reason:
        print(f"vulnerabilities of the locked versions: not checked: {reason}")
        return 0
    errors, notes = judge(found, looked_at, datetime.now(UTC).date())
    for note in notes:
        print(f"note: {note}")
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    if errors:
        print(f"raise the versions in the lock, or add a reason to {ignored.name}", file=sys.stderr)
        return 1
    print(f"{len(found)} locked versions audited: no known vulnerability that counts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
