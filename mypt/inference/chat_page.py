"""The page to talk with a served model: one file, nothing loaded from elsewhere."""

import hashlib
from base64 import b64encode
from pathlib import Path

_PAGE = Path(__file__).parent / "page"


def chat_page(name: str, *, key: bool) -> tuple[str, str]:
    """Return the page's HTML and the policy that lets a browser run its script and no other.

    Args:
        name: What the model is called.
        key: Whether people must give an API key.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    script = (_PAGE / "chat.js").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(_PAGE), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("chat.html").render(
        name=name,
        key=key,
        style=Markup((_PAGE / "chat.css").read_text(encoding="utf-8")),
        script=Markup(script),
    )
    policy = (
        f"default-src 'none'; connect-src 'self'; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'; frame-ancestors 'none'; base-uri 'none'"
    )
    return html, policy
