"""Pages: everything is escaped, nothing is asked of the network, an unknown name is an error."""

import re
from html.parser import HTMLParser

import jinja2
import pytest
from PIL import Image

from blemish.inspection.overlay import Scale
from blemish.report.charts import curves
from blemish.report.html import colour_scale, environment, picture, write_page

EVIL = "<script>alert('&\"')</script>"
EVERYTHING = """
{% import macros as page %}
{{ page.heading(text, 2, anchor=text) }}
{{ page.paragraph(text) }}
{% call page.paragraph(css="soft") %}{{ text }}{% endcall %}
{{ page.promise(text) }}
{{ page.warning(text) }}
{{ page.bullets([text]) }}
{{ page.tables([((text,), [(text, "3")])], words=(0,)) }}
{{ page.contents([(text, text)]) }}
{{ page.charts([chart]) }}
{{ page.pictures(pictures) }}
{% if html %}
{% call page.commands() %}{{ text }}{% endcall %}
{{ page.legend(scale, text, truth=true) }}
{% endif %}
"""


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


def everything(text, html=True):
    image = Image.new("RGB", (8, 8))
    return (
        environment(html)
        .from_string(EVERYTHING)
        .render(
            macros="html.j2" if html else "markdown.j2",
            html=html,
            text=text,
            chart=curves({text: ([0, 1], [0, 1])}, text, text, text),
            pictures=[picture(image, text, text), picture(image, text, text, lossy=True)],
            scale=colour_scale(Scale(1.0, 2.0), [(1.5, text), (9.0, "outside")]),
        )
    )


def test_everything_escapes_its_text_and_asks_nothing_of_the_network():
    content = everything(EVIL)
    found = Tags(content)
    assert "script" not in found.names
    assert "".join(found.texts).count(EVIL) >= 15
    assert "outside" not in content, "a tick that is not on the scale"
    links = [value for tag, name, value in found.attributes if name in ("src", "href")]
    assert all(value.startswith(("data:image/png", "data:image/jpeg", "#")) for value in links)
    assert not re.search(r"url\((?!#)", content)


def test_markdown_holds_the_same_words_without_pictures():
    text = everything("a & b", html=False)
    assert "## a & b" in text and "- a & b" in text
    assert "| a & b | 3 |" in text and "Warning: a & b" in text
    assert "<" not in text


def test_a_page_is_written_whole_and_an_unknown_name_is_an_error(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", EVIL, "demo.j2", textures=[])
    found = Tags(path.read_text())
    assert path.read_text().endswith("</html>")
    assert "script" not in found.names and EVIL in found.texts
    assert ("meta", "content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in found.attributes
    with pytest.raises(jinja2.UndefinedError):
        write_page(tmp_path / "page.html", "t", "demo.j2")
