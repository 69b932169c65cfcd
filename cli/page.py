"""Pages for people: one HTML file each that needs nothing else and can be printed."""

from typing import Any, Final

import jinja2

_environment: Final = jinja2.Environment(
    loader=jinja2.PackageLoader("cli", "pages"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(name: str, **values: Any) -> str:
    """The page made from the template `pages/NAME.html`; every value is escaped."""
    return _environment.get_template(f"{name}.html").render(**values)
