"""Names of fields: the API takes each in camelCase and with underscores."""

from __future__ import annotations

import re


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?<!_)([A-Z])", r"_\1", name).lower()


def camel(name: str) -> str:
    return name[:1] + re.sub(r"_([a-z0-9])", lambda m: m[1].upper(), name[1:])
