"""``python -m airflow_gemini_batch.emulator``: the service as a process of its own."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from pathlib import Path
from typing import TypeVar

from airflow_gemini_batch.emulator import Emulator, Faults, FaultsError, Options
from airflow_gemini_batch.emulator.faults import Value

V = TypeVar("V", bound=Value)


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code: 2 for settings that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m airflow_gemini_batch.emulator", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8089, help="0 takes a free one (default: 8089)")
    parser.add_argument("--job-seconds", type=float, default=0.0, help="how long a job takes (default: 0)")
    parser.add_argument("--states", help="what successive looks at a job show, e.g. PENDING,RUNNING,SUCCEEDED")
    parser.add_argument("--faults", type=Path, help="JSON file with the fields of Faults")
    parser.add_argument("--options", type=Path, help="JSON file with the fields of Options")
    parser.add_argument("--processing-seconds", type=float, default=0.0, help="how long an upload is PROCESSING")
    parser.add_argument("--api-key", action="append", help="a key that works; may be repeated (default: any)")
    parser.add_argument("--ready-file", type=Path, help="the URL is written here once requests are answered")
    args = parser.parse_args(argv)
    try:
        faults, options = _read(args.faults, Faults), _read(args.options, Options)
    except (OSError, ValueError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    emulator = Emulator(
        host=args.host,
        port=args.port,
        job_seconds=args.job_seconds,
        states=args.states.split(",") if args.states else None,
        faults=faults,
        api_keys=args.api_key,
        processing_seconds=args.processing_seconds,
        options=options,
    )
    try:
        emulator.start()
    except OSError as e:
        emulator.stop()
        print(f"error: cannot listen on {args.host}:{args.port}: {e}", file=sys.stderr)
        return 1
    try:
        if args.ready_file:  # Complete as soon as it is there, and there before the line below.
            partial = args.ready_file.with_name(args.ready_file.name + ".partial")
            partial.write_text(emulator.url)
            partial.replace(args.ready_file)
        print(f"Gemini emulator ready at {emulator.url}", flush=True)
        stop.wait()
    finally:
        emulator.stop()
    return 0


def _read(path: Path | None, kind: type[V]) -> V:
    """:raises FaultsError: the file is not JSON, or has fields that do not exist."""
    if path is None:
        return kind()
    try:
        return kind.from_dict(json.loads(path.read_text()))
    except json.JSONDecodeError as e:
        raise FaultsError(f"{path} is not JSON: {e}") from e
    except FaultsError as e:
        raise FaultsError(f"{path}: {e}") from e


if __name__ == "__main__":
    sys.exit(main())
