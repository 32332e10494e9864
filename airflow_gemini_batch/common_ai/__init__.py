"""
Gemini's Batch API for ``LLMBatchOperator`` and ``@task.llm_batch`` of ``apache-airflow-providers-common-ai``.

``adapter`` is what common.ai finds by its entry point. ``lines`` writes its requests, ``submitting`` makes one paid job of
them, ``items`` reads the results. Imports common.ai, so nothing else in this package imports it.
"""
