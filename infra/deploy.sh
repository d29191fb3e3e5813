#!/usr/bin/env bash
# Make the work pool, where there is none, and register deployments and automations as they are in this image.
# Harmless when repeated.
set -euo pipefail
cd "${SMOOTH_PROJECT:?the folder of the checkout}"
# An existing one stays as it is: somebody may have paused it, or limited it.
prefect work-pool inspect local-pool >/dev/null 2>&1 || prefect work-pool create --type process local-pool
prefect --no-prompt deploy --prefect-file infra/prefect.yaml --all
python -m flows.automations
