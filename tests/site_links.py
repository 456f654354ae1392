"""Looks through a site that was built: links within it, what it loads, what its search knows, what its pictures say.

python tests/site_links.py build/site
"""

import html.parser
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(html.parser.HTMLParser):
    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loaded, self.mute = {""}, [], [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        source = attrs.get("src") or (
            tag == "link" and attrs.get("rel") == "stylesheet" and attrs.get("href")
        )
        # Where nothing else is told, docutils puts the file's name there.
        if tag == "img" and attrs.get("alt", attrs["src"]) in ("", attrs["src"], Path(attrs["src"]).name):
            self.mute.append(attrs["src"])
        if source:
            self.loaded.append(source)


def faults(site):
    pages = {path.resolve(): Page(path) for path in site.rglob("*.html")}
    for path, page in pages.items():
        yield from (f"{path.name}: the picture {picture} has no alternative text" for picture in page.mute)
        for link in page.loaded + page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            if parts.scheme or parts.netloc:
                if link in page.loaded:
                    yield f"{path.name} loads {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.exists():
                yield f"{path.name}: {link} is no file"
            elif target in pages and unquote(parts.fragment) not in pages[target].ids:
                yield f"{path.name}: {link} is no place"
    if "value_and_relevance" not in (site / "searchindex.js").read_text():
        yield "the search does not know value_and_relevance"


if __name__ == "__main__":
    found = sorted(set(faults(Path(sys.argv[1]))))
    print(
        "\n".join(found) or "no link is broken, every picture is described, and nothing comes from elsewhere"
    )
    sys.exit(bool(found))
