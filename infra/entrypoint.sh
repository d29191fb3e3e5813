#!/usr/bin/env bash
# Some programs read secrets from variables alone: NAME_FILE=/run/secrets/x becomes NAME=<its content>, then the command runs.
set -euo pipefail
for variable in $(compgen -e); do
  if [[ $variable == *_FILE && ${!variable} == /run/secrets/* ]]; then
    content=$(< "${!variable}") || { echo "error: $variable names ${!variable}, which can't be read" >&2; exit 1; }
    [[ -n $content ]] || { echo "error: $variable names ${!variable}, which is empty" >&2; exit 1; }
    export "${variable%_FILE}=$content"
    unset "$variable"
  fi
done
exec "$@"
