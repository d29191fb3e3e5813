#!/usr/bin/env bash
# Some programs read secrets from variables alone: X_PASSWORD_FILE=/run/secrets/y becomes X_PASSWORD=<its content>, then the
# command runs.
set -euo pipefail
for variable in $(compgen -e); do
  if [[ $variable =~ _?(PASSWORD|AUTH_STRING|SECRET_KEY|ACCESS_KEY|SERVE_TOKEN|NOTIFY_URL)_FILE$ ]]; then
    [[ -f ${!variable} && -r ${!variable} ]] || { echo "error: $variable names ${!variable}, which can't be read" >&2; exit 2; }
    content=$(< "${!variable}")
    [[ -n $content ]] || { echo "error: $variable names ${!variable}, which is empty" >&2; exit 2; }
    export "${variable%_FILE}=$content"
    unset "$variable"
  fi
done
exec "$@"
