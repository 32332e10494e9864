"""
Was this task really stopped? Airflow tells a trigger that it was killed also when it was not: after a triggerer's
fail-over, and after a clear whose next try waits for the same jobs already. The task instance's state tells them apart,
unless that next try has failed by the time it is asked: then the number of the newest try does.
"""

from __future__ import annotations

from typing import Any

STOPPED = frozenset({"failed", "success", "skipped", "upstream_failed", "removed"})
"""States in which nobody waits for the jobs any more. In all others, a next try decides what becomes of them."""


def state_of(dag_id: str, task_id: str, run_id: str, map_index: int) -> str | None:
    """Ask Airflow for a task instance's state; blocks, and may hang while Airflow shuts down: set a time limit."""
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    states: dict[str, Any] = RuntimeTaskInstance.get_task_states(
        dag_id=dag_id, task_ids=[task_id], run_ids=[run_id], map_index=map_index
    )
    if run_id not in states:
        return "removed"  # the run was deleted: a state of None, as after a clear, would still be listed
    # A mapped task is listed with its index: "task_3".
    of_run = states[run_id]
    state = of_run.get(task_id, of_run.get(f"{task_id}_{map_index}"))
    return None if state is None else str(getattr(state, "value", state))


TRY_KEY = "gemini_batch_try"
"""XCom in which a try says that it has begun. Airflow clears a task's XCom when a try starts, so it is always the newest."""


def newest_try(dag_id: str, task_id: str, run_id: str, map_index: int) -> int | None:
    """Return the number of the newest try that has begun, None if it said nothing; blocks, as :func:`state_of` does."""
    from airflow.providers.common.compat.sdk import XCom

    said = XCom.get_one(key=TRY_KEY, dag_id=dag_id, task_id=task_id, run_id=run_id, map_index=map_index)
    return said if isinstance(said, int) else None
