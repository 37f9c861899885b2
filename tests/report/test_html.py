"""Pages: everything is escaped, nothing is asked of the network, an unknown block is an error."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import jinja2
import pytest
from PIL import Image

from blemish.inspection.overlay import Scale
from blemish.report.charts import curves
from blemish.report.html import block, heading, legend, page, picture, table, write_page

EVIL = "<script>alert('&\"')</script>"


class Tags(HTMLParser):
    """The elements and texts of a page."""

    def __init__(self, content):
        super().__init__()
        self.names, self.attributes, self.texts = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_data(self, data):
        self.texts.append(data)


def everything(text):
    image = Image.new("RGB", (8, 8))
    return [
        heading(text, 2, anchor=text),
        *(block(kind, text) for kind in ("promise", "warning", "commands")),
        block("paragraph", text),
        block("bullets", [text]),
        block("contents", [(text, text)]),
        table((text,), [(text, 3)], words=(0,)),
        block("charts", [curves({text: ([0, 1], [0, 1])}, text, text, text)]),
        block("pictures", [picture(image, text, text), picture(image, text, text, lossy=True)]),
        legend(Scale(1.0, 2.0), text, [(1.5, text), (9.0, "outside")], truth=True),
    ]


def test_every_block_escapes_its_text_and_asks_nothing_of_the_network():
    content = page(EVIL, everything(EVIL))
    found = Tags(content)
    assert "script" not in found.names
    assert "".join(found.texts).count(EVIL) >= 15
    assert "outside" not in content, "a tick that is not on the scale"
    links = [value for tag, name, value in found.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png", "data:image/jpeg", "#")) for value in links)
    assert not re.search(r"url\((?!#)", content)
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in found.attributes


def test_a_page_is_written_whole_and_an_unknown_block_is_an_error(tmp_path):
    assert write_page(tmp_path / "new" / "page.html", "t", everything("x")).read_text().endswith("</html>")
    with pytest.raises(jinja2.UndefinedError):
        page("t", [block("headnig", "x")])
