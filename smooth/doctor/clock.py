"""The clock against others': certificates and signatures of requests are refused where it is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from smooth.doctor import services
from smooth.doctor.finding import Finding, error, ok, warning

TIMEOUT_SECONDS = 15.0
SLIGHT_SECONDS = 30.0
WRONG_SECONDS = 300.0  # certificates that were just made are refused; S3 refuses signatures from 900 on
MEND = "set the clock: timedatectl set-ntp true (in a container or virtual machine, the host's)"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def clock() -> Finding:
    """The difference to the first of the hub and the cluster's services whose answer tells a time."""
    failures = []
    for name, url in _sources():
        try:
            ahead, uncertain = _ahead(url)
        except (httpx.HTTPError, ValueError) as failure:
            failures.append(f"{name}: {failure or type(failure).__name__}")
            continue
        host = httpx.URL(url).host
        text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} {name} at {host}"
        if abs(ahead) - uncertain > WRONG_SECONDS:
            return error("clock", text, MEND)
        if abs(ahead) - uncertain > SLIGHT_SECONDS:
            return warning("clock", text, MEND)
        if host in LOOPBACK:
            return ok("clock", f"as {name}'s on this machine has it, which proves little")
        return ok("clock", f"within {max(1.0, abs(ahead)):.0f} s of {name} at {host}")
    why = f" ({failures[0][:120]})" if failures else ""
    return warning("clock", f"unknown, nobody to compare with{why}", "compare `date -u` with a clock that you trust")


def _sources() -> Iterator[tuple[str, str]]:
    from huggingface_hub import constants

    if not constants.HF_HUB_OFFLINE:
        yield "the hub", constants.ENDPOINT
    for name, address in services.addresses().items():
        if address.startswith(("http://", "https://")):
            yield name, address


def _ahead(url: str) -> tuple[float, float]:
    """Seconds that this clock is ahead of the server's, and by how many that may be wrong.

    Raises:
        ValueError: the answer tells no time.
        httpx.HTTPError: there is no answer.
    """
    before = datetime.now(UTC)
    response = httpx.head(url, timeout=TIMEOUT_SECONDS)
    after = datetime.now(UTC)
    date = response.headers.get("date")
    if date is None:
        raise ValueError("its answer has no date")
    told = parsedate_to_datetime(date)
    middle = before + (after - before) / 2
    return (middle - told).total_seconds(), (after - before).total_seconds() / 2 + 1.0  # it tells whole seconds
