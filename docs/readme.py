"""The site's first page is the README: one text, with its links into `docs/` made relative to the site."""

from pathlib import Path
from typing import Any


def on_page_markdown(markdown: str, page: Any, config: Any, **_: object) -> str:
    """Put the README in the place of `index.md`, which only holds that place."""
    if page.file.src_path != "index.md":
        return markdown
    readme = Path(config.config_file_path).with_name("README.md").read_text(encoding="utf-8")
    return readme.replace("](docs/", "](")
