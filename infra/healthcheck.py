"""``python -m infra.healthcheck``: whether the service of this container answers at ``$SMOOTH_HEALTH_URL``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from infra.local import http


def main() -> int:
    """Ask once, with the service's token where it has one, and return the exit code a container engine wants."""
    url = os.environ.get("SMOOTH_HEALTH_URL")
    if not url:
        return 0
    token = os.environ.get("RAY_AUTH_TOKEN_PATH") or os.environ.get("SMOOTH_SERVE_TOKEN_FILE")
    headers = {"Authorization": f"Bearer {Path(token).read_text().strip()}"} if token else {}
    answer = http.request(url, headers=headers)
    if answer is None or answer[0] != 200:
        print(f"{url} {'does not answer' if answer is None else f'answers {answer[0]}'}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
