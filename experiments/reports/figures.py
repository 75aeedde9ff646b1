"""Figures of a run: saved as PNG and as SVG with a text in words, and put into a page in the page's own colours."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxrnn import plotting

SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
# What a drawing consists of; scripts, styles (which would hold for the whole page), links, foreign HTML are left out.
_SHAPES = ("path", "rect", "circle", "ellipse", "line", "polyline", "polygon", "text", "tspan", "image")
_PAINT = ("clipPath", "mask", "pattern", "marker", "linearGradient", "radialGradient", "stop")
DRAWN = frozenset(("svg", "g", "defs", "use", "title", "desc", *_SHAPES, *_PAINT))
# The colours of figures, by the variables of page.css, which has others for dark screens.
COLOURS = {
    **{colour.lower(): f"var(--c{number})" for number, colour in enumerate(plotting.COLOURS)},
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#808080": "var(--grey)",
    "#b0b0b0": "var(--grid)",
}


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, and beside it as SVG, whose text says what is drawn."""
    figure.savefig(path, dpi=150)
    figure.set_layout_engine("none")  # what was laid out once stays
    path.with_suffix(".svg").write_text(svg_of(figure, path.stem), encoding="utf-8")


def svg_of(figure: Figure, name: str) -> str:
    """The figure as SVG: letters stay letters, ids depend on the name alone."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(text, format="svg", metadata=nothing)
    for tag in (SVG, XLINK):
        ET.register_namespace("xlink" if tag == XLINK else "", tag[1:-1])
    root = ET.fromstring(text.getvalue())
    for place, (tag, words) in enumerate(zip(("title", "desc"), in_words(figure, name), strict=True)):
        element = ET.Element(f"{SVG}{tag}")
        element.text = words
        root.insert(place, element)
    return ET.tostring(root, encoding="unicode")


def in_words(figure: Figure, name: str) -> tuple[str, str]:
    """A title, and what there is to see: the axes, the curves and where they end."""
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    titles = [title for axes in panels if (title := axes.get_title())]
    title = figure.get_suptitle() or "; ".join(dict.fromkeys(titles)) or name.replace("_", " ")
    return title, " ".join(_panel(axes) for axes in panels)


def _panel(axes: Axes) -> str:
    x, y = axes.get_xlabel(), axes.get_ylabel() or axes.get_title()
    scale = " on a logarithmic scale" if axes.get_yscale() == "log" else ""
    said = f"{axes.get_title() or 'Panel'}: {y or 'values'}{f' over {x}' if x else ''}{scale}."
    ends, constants = [], []
    for line in axes.lines:
        label = str(line.get_label())
        xs, ys = (np.asarray(data, float) for data in line.get_data())
        if label.startswith("_") or not len(ys):
            continue
        if len(ys) <= 2 and len(set(ys.tolist())) == 1:
            constants.append(f"{label} at {ys[0]:.3g}")
        elif np.all(np.diff(xs) >= 0):
            ends.append(f"{label} ends at {ys[-1]:.3g}")
    return " ".join([said, *([f"{'; '.join([*ends, *constants])}."] if ends or constants else [])])


def inlined(text: str, prefix: str) -> Markup:
    """An SVG file as a part of a page: nothing but what is drawn, ids of its own, the page's colours and letters.

    Raises:
        ValueError: it is no SVG.
    """
    if "<!ENTITY" in text:
        raise ValueError("it declares entities")
    try:
        root = ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(str(error)) from None
    if root.tag != f"{SVG}svg":
        raise ValueError(f"its root is {root.tag}")
    _clean(root, prefix)
    width = float(root.get("viewBox", "0 0 600 400").replace(",", " ").split()[2])
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    words = {child.tag: child for child in root if child.tag in ("title", "desc")}
    for tag in ("title", "desc"):
        words.setdefault(tag, ET.Element(tag)).set("id", f"{prefix}-{tag}")
    if not words["title"].text:
        words["title"].text = "Figure"
    root[:] = [words["title"], words["desc"], *(child for child in root if child.tag not in words)]
    root.set("role", "img")
    root.set("aria-labelledby", f"{prefix}-title {prefix}-desc")
    root.set("class", "figure")
    # As large as it was drawn (a point is 4/3 pixels); smaller where the screen is, down to letters of 8 pixels.
    root.set("style", f"max-width: {width * 4 / 3:.0f}px; min-width: {width * 0.8:.0f}px")
    return Markup(ET.tostring(root, encoding="unicode"))


def _clean(element: ET.Element, prefix: str) -> None:
    element.tag = element.tag.removeprefix(SVG)
    for name, value in list(element.attrib.items()):
        del element.attrib[name]
        plain = name.removeprefix(XLINK)
        if plain.startswith(("on", "{")):
            continue
        if plain == "href":
            if value.startswith("#"):
                value = f"#{prefix}-{value[1:]}"
            elif not re.match(r"data:image/png;base64,[\w+/=\s]*$", value):
                continue
        elif plain == "id":
            value = f"{prefix}-{value}"
        elif re.search(r"url\((?!#)", value):
            continue
        if plain == "style":
            value = _restyled(value)
        element.set(plain, re.sub(r"url\(#", f"url(#{prefix}-", value))
    element[:] = [child for child in element if isinstance(child.tag, str) and child.tag.removeprefix(SVG) in DRAWN]
    for child in element:
        _clean(child, prefix)


def _restyled(style: str) -> str:
    style = re.sub(r"font-family:[^;]*;?", "", style)
    style = re.sub(r"font: *((?:[\w.]+ )*?[\d.]+px)[^;]*", lambda found: _font(found[1]), style)
    return re.sub(r"#[0-9a-fA-F]{6}\b", lambda found: COLOURS.get(found[0].lower(), found[0]), style)


def _font(shorthand: str) -> str:
    """``font: bold 11px 'DejaVu Sans'`` without the family, which is the page's."""
    *words, size = shorthand.split()
    weight = [f"font-weight: {word}" for word in words if word in ("bold", "600", "700")]
    slant = [f"font-style: {word}" for word in words if word in ("italic", "oblique")]
    return "; ".join([f"font-size: {size}", *weight, *slant])
