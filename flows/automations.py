"""``python -m flows.automations``: what the Prefect server does by itself, about runs that die and every night.

Made anew each time the deployments are registered, by name; what was switched on or off in the UI stays so.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import cast
from uuid import UUID

from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.actions import ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict

HEARTBEAT = "prefect.flow-run.heartbeat"
HEARTBEAT_SECONDS = 30  # as infra/prefect.yaml has it
SILENT = "SMOOTH_SILENT_SECONDS"
SILENT_SECONDS = 600
"""Without a heartbeat until a run is taken for dead: longer than a run waits for a server that is away."""
CANCEL_SECONDS = 300
"""That a worker has to end what was cancelled."""
PICKED_UP = 3
"""How often a crashed run is started again, so that one that kills its machine doesn't do it for ever."""
SETTLE_SECONDS = 10
"""From a crash to its picking up: a worker reports a lost process twice, and must not mean the new one."""
DEPLOYMENTS = ["full", "grid"]
"""Whose runs go on where they stopped."""
NOTIFY_URL = "SMOOTH_NOTIFY_URL"
BLOCK = "smooth-notify"
NIGHTLY = "nightly"
Labels = dict[str, str | list[str]]
RUNS: Labels = {"prefect.resource.id": "prefect.flow-run.*"}


def automations(silent_s: int = SILENT_SECONDS, block: UUID | None = None) -> list[AutomationCore]:
    """All of them; with the id of a notification ``block`` also the one that tells of what failed.

    None forces a state: a run that has ended meanwhile stays as it is.
    """
    ended = _runs("Completed", "Failed", "Cancelled")
    resting = _runs("Cancelling", "Paused", "Suspended", "AwaitingRetry")
    made = [
        AutomationCore(
            name="smooth: a run without heartbeat has crashed",
            description=f"Its process gave no sign for {silent_s} s. Its Ray job, if there is one, goes on.",
            trigger=_missing({HEARTBEAT}, {HEARTBEAT} | ended | resting, silent_s),
            actions=[
                ChangeFlowRunState(
                    state=StateType.CRASHED,
                    message=f"no heartbeat for {silent_s} s: the process that ran this flow is gone",
                )
            ],
        ),
        AutomationCore(
            name="smooth: a cancelled run without a process is cancelled",
            description=f"Nobody answered to its cancellation for {CANCEL_SECONDS} s.",
            trigger=_missing(_runs("Cancelling"), ended | _runs("Crashed"), CANCEL_SECONDS),
            actions=[ChangeFlowRunState(state=StateType.CANCELLED, message="no process was left to cancel")],
        ),
        AutomationCore(
            name="smooth: a crashed run is picked up again",
            description=f"At most {PICKED_UP} times. Finished stages are reused, a running Ray job is found again.",
            trigger=_missing(
                _runs("Crashed"),
                _runs("AwaitingRetry", "Scheduled", "Pending"),
                SETTLE_SECONDS,
                RUNS | {"prefect.run-count": f"[0-{PICKED_UP}]"},
                {"prefect.resource.role": "deployment", "prefect.resource.name": DEPLOYMENTS},
            ),
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="AwaitingRetry",
                    message="picked up after a crash: finished stages are reused, a running Ray job is found again",
                )
            ],
        ),
    ]
    if block is not None:
        made.append(_notification(block))
    return made


def _notification(block: UUID) -> AutomationCore:
    return AutomationCore(
        name="smooth: tell of a run that failed or crashed",
        description=f"Posts to the URL of {NOTIFY_URL}, kept in the block {BLOCK}.",
        trigger=EventTrigger(
            expect=_runs("Failed", "Crashed"),
            match=ResourceSpecification(RUNS),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(0),
        ),
        actions=[
            SendNotification(
                block_document_id=block,
                subject="{{ flow.name }} {{ flow_run.name }}: {{ event.resource['prefect.state-name'] }}",
                body="{{ event.resource['prefect.state-message'] }}\n{{ flow_run|ui_url }}",
            )
        ],
    )


def notification_block(url: str) -> UUID:
    """Keep ``url`` in the server's encrypted block store; no log and no page shows it."""
    block = CustomWebhookNotificationBlock(
        name=BLOCK,
        url="{{url}}",
        json_data={"text": "{{subject}}\n{{body}}"},
        secrets=SecretDict({"url": url}),
    )
    return cast(UUID, block.save(BLOCK, overwrite=True))


def schedule_nightly(client: SyncPrefectClient) -> None:
    """Give ``smooth-train/full`` a nightly schedule, off, unless it has it.

    Not in infra/prefect.yaml: each `prefect deploy` would switch it off again.
    """
    deployment = client.read_deployment_by_name(f"smooth-train/{DEPLOYMENTS[0]}")
    if NIGHTLY not in {schedule.slug for schedule in deployment.schedules}:
        every_night = CronSchedule(cron="0 2 * * *", timezone="UTC")
        client.create_deployment_schedules(
            deployment.id, [DeploymentScheduleCreate(schedule=every_night, active=False, slug=NIGHTLY)]
        )


def _runs(*states: str) -> set[str]:
    """The events of runs that enter these states."""
    return {f"prefect.flow-run.{state}" for state in states}


def _missing(
    after: set[str],
    expect: set[str],
    within_s: int,
    match: Labels = RUNS,
    related: Labels = {},  # noqa: B006 - read only
) -> EventTrigger:
    """Fires for a run where after one event none of the others comes in time."""
    return EventTrigger(
        after=after,
        expect=expect,
        match=ResourceSpecification(match),
        match_related=ResourceSpecification(related),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within_s),
    )


def main() -> None:
    """Make or renew them at the server of ``PREFECT_API_URL``."""
    silent = os.environ.get(SILENT) or str(SILENT_SECONDS)
    if not silent.isdecimal() or int(silent) <= HEARTBEAT_SECONDS:
        raise SystemExit(f"error: {SILENT}={silent}: give whole seconds, more than {HEARTBEAT_SECONDS}, a heartbeat's")
    with get_client(sync_client=True) as client:
        url = os.environ.get(NOTIFY_URL)
        wanted = automations(int(silent), notification_block(url) if url else None)
        for automation in wanted:
            known = client.read_automations_by_name(automation.name)
            if known:
                kept = automation.model_copy(update={"enabled": known[0].enabled})
                client.update_automation(known[0].id, kept)
            else:
                client.create_automation(automation)
            print(f"automation {automation.name!r} {'renewed' if known else 'made'}")
        schedule_nightly(client)


if __name__ == "__main__":
    main()
