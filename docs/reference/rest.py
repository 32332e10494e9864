"""What docstrings in reST say otherwise than Markdown does, before they are shown: roles (``:class:`X```) and ``::``."""

from __future__ import annotations

import re
from typing import Any

ROLE = re.compile(r":(?:class|data|meth|func|attr|mod|exc):<code>~?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """MkDocs calls this with each page."""
    return ROLE.sub(r"<code>\1</code>", html).replace("::</p>", ":</p>")
