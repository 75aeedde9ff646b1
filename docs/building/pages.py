"""What mkdocs takes from the root of the repository: README is the home page, CONTRIBUTING and CHANGELOG are pages."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
TAKEN = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)]*)?\)")


def on_files(files, config):
    for source, page in TAKEN.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links_on_the_site(text)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Links from docs/ to those pages; a table that follows a comment needs an empty line between."""
    for source, target in TAKEN.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}").replace(f"](../../{source}", f"](../{target}")
    return re.sub(r"^(<!--.*-->)\n(?=\S)", r"\1\n\n", markdown, flags=re.MULTILINE)


def _links_on_the_site(text):
    """Links of a page at the root; to what is no page of the site (code, LICENSE), the text alone stays."""

    def link(match):
        image, label, path, anchor = match.groups()
        if "://" in path or path in TAKEN.values():
            return match[0]
        target = TAKEN.get(path, path.removeprefix("docs/") if path.startswith("docs/") else None)
        return label if target is None else f"{image}[{label}]({target}{anchor or ''})"

    return LINK.sub(link, text)
