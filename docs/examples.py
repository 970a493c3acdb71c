"""Show the `>>>` examples of docstrings as code: griffe knows them under `Examples:`, and else takes them for quotes."""

import re
from typing import Any

import griffe

SESSION = re.compile(r"^>>> .*(?:\n.*\S.*)*", re.MULTILINE)


class Examples(griffe.Extension):
    """Lets an example begin with `Example:`, or with nothing."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            text = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")
            obj.docstring.value = SESSION.sub(lambda found: f"```pycon\n{found[0]}\n```", text)
