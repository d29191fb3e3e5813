#!/usr/bin/env bash
# Make the work pool, where there is none, and register deployments and automations as they are in this image.
# Harmless when repeated.
set -euo pipefail
cd "${SMOOTH_PROJECT:?the folder of the checkout}"
prefect work-pool create --type process --overwrite local-pool
prefect --no-prompt deploy --prefect-file infra/prefect.yaml --all
python -m flows.automations
