"""Hooks of the documentation site: links that leave docs/ become plain text, since the site has no such page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page's source with the text alone of each link to a file outside docs/; code blocks are left as they are."""
    docs = Path(config.docs_dir).resolve()
    folder = Path(page.file.abs_src_path).resolve().parent

    def keep(match: re.Match[str]) -> str:
        text, target = match.groups()
        path = target.partition("#")[0]
        inside = re.match(r"[a-z]+:", target) or (folder / path).resolve().is_relative_to(docs)
        return match[0] if inside else text

    parts = _FENCE.split(markdown)
    return "".join(part if part.startswith("```") else _LINK.sub(keep, part) for part in parts)
