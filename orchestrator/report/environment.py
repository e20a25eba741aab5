"""The templates of all pages. Every value is escaped."""

from __future__ import annotations

import re
from functools import partial
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape


def environment() -> Environment:
    """Returns the templates, with filters for text that must not be broken, text that may be, and names of folders in links."""
    loader = PackageLoader("orchestrator.report")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    templates.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    templates.filters["breakable"] = lambda text: Markup("<wbr>").join([escape(part) for part in re.split(r"(?<=[._])", text)])
    templates.filters["place"] = partial(quote, errors="surrogateescape")  # a folder may have any sign in its name
    return templates
