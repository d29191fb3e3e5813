"""Screenshots of Prefect and MLflow for the README: ``python -m tests.screenshots.consoles`` after `make demo`.

Headless Chromium looks at the local cluster as a person would: the form of ``smooth-train/full``, its last flow run
with the artifacts, the training's pictures, the registered model with aliases and tags. Writes ``.github/images``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from mlflow import MlflowClient
from playwright.sync_api import Page, ViewportSize, sync_playwright
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings import PREFECT_UI_URL

from smooth.settings import Services

FOLDER = Path(".github/images")
MODEL = "smooth-diffusion"
PICTURE = "evaluate/strips.png"
SIZE: ViewportSize = {"width": 1280, "height": 860}
SETTLE_MS = 6000


def addresses() -> dict[str, str]:
    """Name of each picture -> the page that it shows."""
    services = Services.load()
    if services.mlflow_uri is None:
        sys.exit("error: no cluster is up; run `make demo` and `make promote VERSION=candidate` first")
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("smooth-train/full")
        ours = DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id]))
        runs = client.read_flow_runs(deployment_filter=ours, sort=FlowRunSort.START_TIME_DESC, limit=1)
    production = MlflowClient(services.mlflow_uri).get_model_version_by_alias(MODEL, "production")
    experiment = MlflowClient(services.mlflow_uri).get_run(str(production.run_id)).info.experiment_id
    prefect = PREFECT_UI_URL.value()
    return {
        "prefect-form": f"{prefect}/deployments/deployment/{deployment.id}/run",
        "prefect-run": f"{prefect}/runs/flow-run/{runs[0].id}",
        "mlflow-run": f"{services.mlflow_uri}/#/experiments/{experiment}/runs/{production.run_id}/artifacts/{PICTURE}",
        "mlflow-registry": f"{services.mlflow_uri}/#/models/{MODEL}/versions/{production.version}",
    }


def take(page: Page, name: str, address: str) -> None:
    """Open a page, wait until it has what it shows, and keep what is seen."""
    page.goto(address)
    page.wait_for_timeout(SETTLE_MS)  # both pages go on asking their server: they are never idle
    for button in page.get_by_role("button", name="Close", exact=True).all():  # MLflow's assistant
        button.click()
    shown = {"prefect-run": "Artifacts", "mlflow-registry": "Description"}  # the latter folds, the tags come up
    if name in shown:
        page.get_by_text(shown[name]).first.click()
    page.wait_for_timeout(SETTLE_MS / 3)
    page.screenshot(path=FOLDER / f"{name}.png")
    print(FOLDER / f"{name}.png")


def main() -> None:
    """Take all pictures."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("error: needs Chromium (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE)
        for name, address in addresses().items():
            take(page, name, address)
        browser.close()


if __name__ == "__main__":
    main()
