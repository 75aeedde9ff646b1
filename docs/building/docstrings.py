"""Docstrings as the site shows them: what stands under ``Args:``, ``Returns:`` … as lists, examples as code.

The parsers that come with the site's tools take one name an argument; ours has ``params, xs, carry: as for apply``.
"""

import re
import textwrap

import griffe

HEADER = re.compile(r"(?P<title>[A-Z][\w ,]*[^:]*):")
LISTS = ("Args", "Raises", "Fields", "Methods", "Attributes")
ENTRY = re.compile(r"(?P<names>[\w.*]+(?:\[\w+\])?(?:\([^)]*\))?(?: -> [^:]+)?(?:, [\w.]+)*): ?(?P<text>.*)")
FIELD = re.compile(r"^    ([A-Za-z]\w*: .*)$", re.MULTILINE)


class Shown(griffe.Extension):
    """A filter between the source and the page."""

    def on_object(self, *, obj, **kwargs):
        if obj.is_alias or obj.is_private:
            return
        text = shown(obj.docstring.value) if obj.docstring else ""
        if obj.is_class and "**Fields**" not in text and (fields := FIELD.findall(obj.source)):
            text += "\n".join(["", "", "```python", *fields, "```"])  # with the comments that give their shapes
        if text:
            obj.docstring = griffe.Docstring(text.strip(), parent=obj)


def shown(docstring: str) -> str:
    """The docstring as Markdown."""
    lines = re.sub(r":(?:func|class|mod):(`[^`]+`)", r"\1", docstring).splitlines()
    out: list[str] = []
    while lines:
        line = lines.pop(0)
        header = HEADER.fullmatch(line.rstrip())
        if header is None or not lines or not lines[0].startswith("    "):
            line = re.sub(r"^(Differs[^:]{0,20}): ", r"**\1** ", line)
            out.append(line if line.startswith("    ") else _escaped(line))
            continue
        body = []
        while lines and (lines[0].startswith("    ") or not lines[0].strip()):
            body.append(lines.pop(0))
        title, inner = header["title"], textwrap.dedent("\n".join(body)).strip("\n")
        out += ["", *_section(title, inner), ""]
    return "\n".join(out).strip()


def _section(title: str, body: str) -> list[str]:
    if title.startswith("Example"):
        return [f"**{_escaped(title)}**", "", "```pycon", body, "```"]
    if title in LISTS or title == "Returns":
        return [f"**{title}**", "", *_entries(body, everywhere=title in LISTS)]
    if title.startswith("Reference"):
        return [f"**{title}**", "", _escaped(body)]
    return [f"{_escaped(title)}:", "", textwrap.indent(body, "    ")]  # equations


def _entries(body: str, *, everywhere: bool) -> list[str]:
    """``name: text`` as a list; in ``Returns`` only where more than a sentence is said by names."""
    out: list[str] = []
    listed = False
    for line in body.splitlines():
        entry = ENTRY.fullmatch(line)
        if entry and (everywhere or re.fullmatch(r"[a-z]\w*(, \w+)*", entry["names"])):
            if not listed:
                out.append("")
            out.append(f"- `{entry['names']}`: {_escaped(entry['text'])}")
            listed = True
        elif listed and line.startswith("    "):
            out.append(f"  {_escaped(line.strip())}")
        else:
            listed = listed and not line.strip()
            out.append(_escaped(line))
    return out


def _escaped(text: str) -> str:
    r"""``*B`` outside of code as ``\*B``: two of them are no emphasis."""
    parts = re.split(r"(``.*?``|`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"\*(?=B)", r"\*", part) for part in parts)
