"""Files at the Files API, looked at and put away: get, list, delete. All are safe to retry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_gemini_batch.core.checks import flag
from airflow_gemini_batch.exceptions import NoSuchFile
from airflow_gemini_batch.operators.at_the_service import LISTING, AtTheService, ago, file_names
from airflow_gemini_batch.operators.checking import check_given

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_gemini_batch.core.client import Client


class _OnFiles(AtTheService):
    template_fields: Sequence[str] = ("file", "gemini_conn_id")

    def __init__(self, *, file: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = file
        check_given(self, {"file": file_names})

    def _told(self, facts: list[Any]) -> Any:
        return facts[0] if isinstance(self.file, str | Mapping) else facts


class GeminiGetFileOperator(_OnFiles):
    """
    Look at a file; returns ``name``, ``uri`` (what requests call it), ``size`` in bytes, ``sha256``, ``state``
    (``"ACTIVE"``: it can be used), ``error`` and ``expires_at`` (ISO 8601 in UTC).

    :param file: name of a file, ``files/...``, or what an upload returned; or a list of them (then a list is returned).
    :param missing_ok: a file that is not there is no error; its ``state`` is then ``"GONE"``.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    def __init__(self, *, file: Any, missing_ok: bool = False, **kwargs: Any) -> None:
        super().__init__(file=file, **kwargs)
        self.missing_ok = missing_ok
        check_given(self, {"missing_ok": flag})

    def execute(self, context: Context) -> Any:
        with self._client() as client:
            return self._told([self._look(client, name) for name in file_names("file", self.file)])

    def _look(self, client: Client, name: str) -> dict[str, Any]:
        from airflow_gemini_batch.core.attempt import utc

        file = client.file(name)
        if file is None:
            if not self.missing_ok:
                raise NoSuchFile(
                    f"{name} is not at the service: files are kept for 48 hours, and shown to their own project only."
                )
            return {"name": name, "state": "GONE"}
        return {
            "name": file.name,
            "uri": file.uri or client.account.url(file.name),
            "size": file.size,
            "sha256": file.sha256,
            "state": file.state,
            "error": file.error or None,
            "expires_at": utc(file.expires_at) if file.expires_at else None,
        }


class GeminiDeleteFileOperator(_OnFiles):
    """
    Delete files; returns their names. One that is gone already is no error. A job that has not read it yet then fails.

    :param file: name of a file, ``files/...``, or what an upload returned; or a list of them (then a list is returned).
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    def execute(self, context: Context) -> Any:
        names = file_names("file", self.file)
        with self._client() as client:
            for name in names:
                client.delete_file(name)
                self.log.info("Deleted %s", name)
        return self._told(names)


class GeminiListFilesOperator(AtTheService):
    """
    List the files of the key's project, all pages, newest first; returns a list of ``name``, ``display_name``, ``size`` in
    bytes, ``created_at`` and ``expires_at``.

    :param older_than: only files uploaded at least so long ago; seconds or a ``timedelta``.
    :param newer_than: only files uploaded less than so long ago.
    :param ours_only: only files of this package.
    :param limit: most files that are returned; how many there are is logged.
    :param gemini_conn_id: connection of type ``gemini_batch``.
    """

    template_fields: Sequence[str] = ("older_than", "newer_than", "gemini_conn_id")

    def __init__(
        self,
        *,
        older_than: timedelta | float | None = None,
        newer_than: timedelta | float | None = None,
        ours_only: bool = False,
        limit: int = 1000,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.older_than = older_than
        self.newer_than = newer_than
        self.ours_only = ours_only
        self.limit = limit
        check_given(self, {name: check for name, check in LISTING.items() if name != "states"})

    def execute(self, context: Context) -> list[dict[str, Any]]:
        from airflow_gemini_batch.core.steps import is_our_file

        before, after = ago("older_than", self.older_than), ago("newer_than", self.newer_than)
        found = []
        with self._client() as client:
            for file in client.list_files():
                at = file.created_at.timestamp() if file.created_at else None
                if (
                    (not self.ours_only or is_our_file(file.name))
                    and (before is None or (at is not None and at <= before))
                    and (after is None or (at is not None and at > after))
                ):
                    found.append((at or 0.0, file))
        found.sort(key=lambda one: one[0], reverse=True)
        self.log.info(
            "%s files of %s bytes%s", len(found), sum(file.size for _, file in found),
            f", {self.limit} are returned" if len(found) > self.limit else "",
        )  # fmt: skip
        return [
            {
                "name": file.name,
                "display_name": file.display_name,
                "size": file.size,
                "created_at": file.created_at.isoformat() if file.created_at else None,
                "expires_at": file.expires_at.isoformat() if file.expires_at else None,
            }
            for _, file in found[: self.limit]
        ]
