"""Run Gemini's Batch API from Apache Airflow: paid once, nothing lost, in plain sight."""

__version__ = "0.1.0"
