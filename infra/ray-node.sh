#!/usr/bin/env bash
# Start this machine's node of Ray from the checkout that this file is in; the arguments are those of `ray start`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
credentials=${SMOOTH_CREDENTIALS_FILE:-infra/cluster.env}
[[ -r $credentials ]] || { echo "error: no $credentials: make it with python3 -m infra.credentials $credentials" >&2; exit 2; }
# shellcheck source=/dev/null
source "$credentials"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$SMOOTH_RAY_TOKEN
export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=$SMOOTH_MLFLOW_PASSWORD
ulimit -n "$(ulimit -H -n)"
exec "${SMOOTH_BIN:-.venv/bin}/ray" start --disable-usage-stats "$@"
