"""Write the code of every section of docs/interop.md into a file of its own: python docs_blocks.py DIR.

A section "## OpenVINO" becomes DIR/docs-OpenVINO.py, so that no file is called like a library.
"""

import re
import sys
from pathlib import Path

ENDINGS = {"python": "py", "js": "mjs"}

page = (Path(__file__).parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")
for heading, language, code in re.findall(r"^## ([\w.-]+)\n.*?^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
    (Path(sys.argv[1]) / f"docs-{heading}.{ENDINGS[language]}").write_text(code, encoding="utf-8")
