"""The page to talk with a served model: one file, nothing loaded from elsewhere."""

from mypt.pages.render import render, script_hash


def chat_page(name: str, *, key: bool) -> tuple[str, str]:
    """Return the page's HTML and the policy that lets a browser run its script and no other.

    Args:
        name: What the model is called.
        key: Whether people must give an API key.
    """
    html = render("chat.html", styles=["chat.css"], script="chat.js", name=name, key=key)
    policy = (
        "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline';"
        f" script-src '{script_hash('chat.js')}'; frame-ancestors 'none'; base-uri 'none'"
    )
    return html, policy
