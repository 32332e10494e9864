"""GeminiEstimateCostOperator: what a GeminiBatchOperator with the same settings would use and cost. Pays nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.failures import failing_fast
from airflow_gemini_batch.operators.batch import GeminiBatchOperator

if TYPE_CHECKING:
    from airflow.sdk import Context


class GeminiEstimateCostOperator(GeminiBatchOperator):
    """
    Estimate what asking Gemini about these rows would cost, for DAGs that branch on it.

    Takes the settings of :class:`GeminiBatchOperator`, reads the source, and writes nothing and pays nothing. Returns
    ``{"requests", "input_tokens", "output_tokens", "usd", "model", "how"}``: one round to the first model, at batch price;
    ``usd`` is None if the price is unknown, ``how`` says what was counted and what was assumed. A source without rows has
    zeros.

    :param output: not needed; nothing is written to it.
    """

    def __init__(self, *, output: str = ".", **kwargs: Any) -> None:
        super().__init__(output=output, **kwargs)

    def execute(self, context: Context) -> dict[str, Any]:
        from airflow_gemini_batch.core.reckoning import estimate_source

        with failing_fast():
            services = self._services()
            try:
                estimate = estimate_source(self._run(context), services)
            finally:
                services.client.close()
        self.log.info("%s", estimate)
        return estimate.to_dict() | {"model": self._models()[0]}
