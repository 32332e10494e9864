"""GeminiHook: an Airflow connection becomes a core ``Client``, and gives ``genai.Client`` to whoever wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowNotFoundException, BaseHook

from airflow_gemini_batch.connection_form import FIELDS, UI_BEHAVIOUR
from airflow_gemini_batch.exceptions import CredentialsRefused, InvalidConfig, RequestRefused, ServiceUnreachable
from airflow_gemini_batch.settings import CONN_ID

if TYPE_CHECKING:
    from airflow.sdk import Connection
    from google import genai

    from airflow_gemini_batch.core.client import Client
    from airflow_gemini_batch.core.prices import PriceTable
    from airflow_gemini_batch.core.rest import Account


class GeminiHook(BaseHook):
    """
    A Gemini Developer API account.

    The connection's password is the API key, its host the base URL (optional), its extra may hold ``api_version``,
    ``timeout`` (seconds for one call), ``prices`` (see :class:`GeminiBatchOperator`) and ``backend`` (``"developer"``).

    :param gemini_conn_id: id of a connection of type ``gemini_batch``.
    """

    conn_name_attr = "gemini_conn_id"
    default_conn_name = CONN_ID
    conn_type = "gemini_batch"
    hook_name = "Gemini Batch"

    def __init__(self, gemini_conn_id: str = default_conn_name, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gemini_conn_id = gemini_conn_id

    @cached_property
    def account(self) -> Account:
        """
        The account the connection describes.

        :raises InvalidConfig: there is no such connection, or it is incomplete.
        """
        try:
            connection = self.get_connection(self.gemini_conn_id)
        except AirflowNotFoundException as e:
            raise self._no_connection() from e
        return account_of(connection)

    async def aaccount(self) -> Account:
        """The same, from an event loop: for triggers."""
        from airflow.providers.common.compat.connection import get_async_connection
        from asgiref.sync import sync_to_async

        try:
            connection = await get_async_connection(self.gemini_conn_id, hook=type(self))
        except AirflowNotFoundException as e:
            try:
                # The triggers of dag.test() can ask Airflow 3.3 for one of its database only this way.
                connection = await sync_to_async(self.get_connection)(self.gemini_conn_id)
            except Exception:
                raise self._no_connection() from e
        return account_of(connection)

    def _no_connection(self) -> InvalidConfig:
        return InvalidConfig(
            f"There is no connection {self.gemini_conn_id!r}. Create one of type {self.conn_type!r} with the Gemini API key "
            "as its password."
        )

    @cached_property
    def prices(self) -> PriceTable:
        """
        Batch prices from the connection's extra ``prices``.

        :raises InvalidConfig: they cannot be understood.
        """
        from airflow_gemini_batch.core.prices import NO_TABLE, PriceTable

        given = self.get_connection(self.gemini_conn_id).extra_dejson.get("prices")
        if isinstance(given, str) and given.strip():
            try:
                given = json.loads(given)
            except ValueError as e:
                raise InvalidConfig(f"Connection {self.gemini_conn_id!r}: prices is no JSON: {e}") from e
        return PriceTable.parse(given, where=f"prices of connection {self.gemini_conn_id!r}") if given else NO_TABLE

    @cached_property
    def client(self) -> Client:
        """Our client: blocking, typed, one for the hook's life."""
        from airflow_gemini_batch.core.client import Client

        return Client(self.account)

    def get_conn(self) -> genai.Client:
        """
        Return the ``google.genai.Client`` for this connection.

        The hook keeps it: a ``genai.Client`` closes itself when it is collected, under whoever still uses it. Its async
        side is ``get_conn().aio``.
        """
        return self.client.sdk

    def test_connection(self) -> tuple[bool, str]:
        """Make one cheap authenticated call; returns whether it worked, and in words what is wrong."""
        try:
            with closing(self.client) as client:
                _ = self.prices  # no call needs them, but every task reads them
                client.test()
        except InvalidConfig as e:
            return False, str(e)
        except CredentialsRefused as e:
            return False, f"The API key was refused; check the password field. ({e})"
        except RequestRefused as e:
            if e.code == 404:
                return False, f"{self.account.base_url} answers, but not as the Gemini Developer API. ({e})"
            return False, f"The service refused the call: {e}"
        except ServiceUnreachable as e:
            return False, f"{self.account.base_url} cannot be reached, or is not the Gemini API: {e}"
        return True, f"Connected to {self.account.base_url} ({self.account.api_version})."

    @classmethod
    def get_ui_field_behaviour(cls) -> dict[str, Any]:
        """The form of Airflow 3.1; later versions read it from the provider info."""
        return {name.replace("-", "_"): value for name, value in UI_BEHAVIOUR.items()}

    @classmethod
    def get_connection_form_widgets(cls) -> dict[str, Any]:
        """The form's own fields on Airflow 3.1; later versions read them from the provider info."""
        from flask_appbuilder.fieldwidgets import BS3TextFieldWidget
        from flask_babel import lazy_gettext
        from wtforms import StringField

        return {
            name: StringField(
                lazy_gettext(field["label"]), widget=BS3TextFieldWidget(), description=field["description"]
            )
            for name, field in FIELDS.items()
        }


def account_of(connection: Connection) -> Account:
    """
    Read a connection.

    :raises InvalidConfig: it lacks the key, or something in it cannot be used.
    """
    return make_account(
        f"Connection {connection.conn_id!r}", connection.password,
        base_url_of(connection.host, connection.schema, connection.port), connection.extra_dejson,
    )  # fmt: skip


def make_account(where: str, password: str | None, host: str, extra: Mapping[str, Any]) -> Account:
    """
    Check the parts of a connection.

    :param where: what an error calls it.
    :param host: base URL, empty for the service's own.
    :raises InvalidConfig: the key is missing, or something cannot be used.
    """
    from airflow_gemini_batch.core.rest import DEFAULT_API_VERSION, DEFAULT_BASE_URL, DEFAULT_TIMEOUT, Account

    def wrong(problem: str) -> InvalidConfig:
        return InvalidConfig(f"{where}: {problem}")

    key = (password or "").strip()
    if not key:
        raise wrong("it has no password; put the Gemini API key there.")
    backend = str(extra.get("backend") or "developer")
    if backend != "developer" or "aiplatform" in host:
        raise wrong(
            "this is Vertex AI's backend. Only the Gemini Developer API is supported: leave backend and host empty, and use "
            "an API key from Google AI Studio."
        )
    if key.startswith(("{", "ya29.")):
        raise wrong("the password is a Google Cloud credential. The Gemini Developer API takes an API key.")
    try:
        timeout = float(extra.get("timeout") or DEFAULT_TIMEOUT)
    except (TypeError, ValueError):
        timeout = 0.0
    if not 0 < timeout <= 3600:
        raise wrong(f"timeout is {extra.get('timeout')!r}; it takes seconds for one call, above 0 and up to 3600.")
    return Account(key, host or DEFAULT_BASE_URL, str(extra.get("api_version") or DEFAULT_API_VERSION), timeout)


def base_url_of(host: str | None, schema: str | None = None, port: int | None = None) -> str:
    """The base URL that a connection's fields mean, empty if it names none."""
    host = (host or "").strip().rstrip("/")
    if not host:
        return ""
    if "://" not in host:
        # A connection URI (AIRFLOW_CONN_...) splits a URL into its parts.
        host = f"{schema or 'https'}://{host}" + (f":{port}" if port else "")
    elif port:
        host += f":{port}"
    return host
