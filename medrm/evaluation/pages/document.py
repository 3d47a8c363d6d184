"""One self-contained HTML page: sections in one frame, one style, no network; imports no torch.

All text of data and models is escaped: templates escape by default, and data for the script are
JSON without a character that HTML or JavaScript could take for markup. A content security policy
allows no script but ours, no request and no picture but those inside the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from medrm.evaluation.tables.table import percent, points
from medrm.files import write_atomically

FOLDER = Path(__file__).parent / "templates"

Content = TypeVar("Content")
"""What a page is made of."""

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


_ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(percent=percent, points=points)
"""It escapes everything and accepts no unknown name."""


def markdown_template(path: Path, finalise: Callable[[object], object] | None = None) -> Template:
    """Returns a template of Markdown, which accepts no unknown name.

    Args:
        path: of the template.
        finalise: what becomes of every value that is put into it; None: it stays as it is.
    """
    environment = Environment(
        loader=FileSystemLoader(path.parent),
        undefined=StrictUndefined,
        finalize=finalise,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["share"] = percent
    return environment.get_template(path.name)


@dataclass(frozen=True)
class Section(Generic[Content]):
    """A section of a page.

    Attributes:
        heading: above the section and in the list of contents.
        template: name of a file in `templates/`, or the path of one that lies elsewhere. It may
            import from `macros.html.jinja`.
        context: returns what the template shows besides what the page is made of; None: the
            section has nothing to say and is left out.
    """

    heading: str
    template: str | Path
    context: Callable[[Content], Mapping[str, Any] | None] = lambda page: {}


def render_page(
    title: str,
    header: str | Path,
    sections: dict[str, Section[Content]],
    page: Content,
    data: Any = None,
) -> str:
    """Returns a page: its header, a list of contents, and every section that has something to say.

    Args:
        title: of the browser's window.
        header: template of what stands above the contents, as of a section.
        sections: name, also the anchor, to section, in their order. One whose template gives
            nothing is left out.
        page: what the page is made of; templates know it by this name.
        data: what the script `browser.js` of `templates/` shows; None: a page without a script.
    """
    bodies: dict[str, tuple[str, Markup]] = {}
    for name, section in sections.items():
        context = section.context(page)
        if context is None:
            continue
        text = _template(section.template).render(page=page, **context).strip()
        if text:
            bodies[name] = (section.heading, Markup(text))
    code = None if data is None else (FOLDER / "browser.js").read_text(encoding="utf-8")
    return _ENVIRONMENT.get_template("base.html.jinja").render(
        title=title,
        header=Markup(_template(header).render(page=page)),
        sections=bodies,
        policy=_policy(code),
        style=Markup((FOLDER / "style.css").read_text(encoding="utf-8")),
        script=None if code is None else Markup(code),
        data=None if data is None else Markup(safe_json(data)),
    )


def _template(where: str | Path) -> Template:
    """Returns a template of `templates/`, or one that lies elsewhere."""
    if isinstance(where, Path):
        return _ENVIRONMENT.from_string(where.read_text(encoding="utf-8"))
    return _ENVIRONMENT.get_template(where)


def write_text(path: Path, text: str) -> None:
    """Writes a page. A reply may hold half a surrogate pair, which is no UTF-8."""
    write_atomically(path, [text.encode(errors="xmlcharrefreplace")])


def safe_json(value: Any) -> str:
    """Returns compact JSON, in ASCII, that can end no `<script>` element and opens no comment."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True).translate(_ESCAPES)


def _policy(script: str | None) -> str:
    """The page's content security policy. SVG marks carry style attributes, hence that exception.

    A script is allowed by the hash of its text (W3C, Content Security Policy Level 3, 2.3.1).
    """
    digest = hashlib.sha256((script or "").encode("utf-8")).digest()
    allowed = f"'sha256-{base64.b64encode(digest).decode()}'" if script is not None else "'none'"
    return (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src {allowed}; base-uri 'none'; form-action 'none'"
    )
