"""/docs: whole in itself, and as true as the document it shows."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from api.site import Site
from atm.api import documents, examples, openapi, page
from atm.api.openapi import document

VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Takes the page apart, and holds that every element ends where it should."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words += data


OPEN = page.render(document(has_keys=False)).decode()
GUARDED = page.render(document(has_keys=True)).decode()


def test_the_page_is_served_with_nothing_allowed_but_its_own_style(site: Site) -> None:
    answered = site.http.get("/docs")
    assert answered.text == OPEN
    assert answered.headers["Content-Type"] == "text/html; charset=utf-8"
    (style,) = re.findall(r"<style>(.*?)</style>", answered.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    rules = dict(rule.split(" ", 1) for rule in answered.headers["Content-Security-Policy"].split("; "))
    assert rules.pop("style-src") == f"'sha256-{digest}'"
    assert set(rules.values()) == {"'none'"}
    assert {"default-src", "base-uri", "form-action", "frame-ancestors"} == set(rules)
    assert answered.headers["X-Content-Type-Options"] == "nosniff"
    assert documents.page_bytes(False) is documents.page_bytes(False)


@pytest.mark.parametrize("text", [OPEN, GUARDED], ids=["open", "guarded"])
def test_the_page_is_whole_in_itself(text: str) -> None:
    read = Reader(text)
    assert not read.tags & {"script", "img", "link", "iframe", "object", "form"}
    assert not {name for name in read.names if name.startswith("on") or name == "style"}
    assert "@import" not in text
    assert "url(" not in text
    assert len(set(read.ids)) == len(read.ids)
    assert set(read.links) == {f"#{name}" for name in read.ids} | {"/openapi.json"}


def named(told: Any) -> Iterator[str]:
    """Every text that the document has for people."""
    if isinstance(told, dict):
        for key, value in told.items():
            if key in ("description", "summary") and isinstance(value, str):
                yield value.replace("`", "")
            else:
                yield from named(value)
    elif isinstance(told, list):
        for value in told:
            yield from named(value)


def test_the_page_shows_all_that_the_document_says() -> None:
    whole = document(has_keys=True)
    words = " ".join(Reader(GUARDED).words.split())
    for part in (whole["paths"], whole["tags"], whole["components"]["schemas"], whole["components"]["responses"]):
        for text in named(part):
            assert " ".join(text.split()) in words
    for path, item in whole["paths"].items():
        assert path in words
        for operation in item.values():
            for parameter in operation.get("parameters", ()):
                assert parameter["name"] in words
    for schema in whole["components"]["schemas"].values():
        for name, told in schema.get("properties", {}).items():
            assert name in words
            for limit in ("minimum", "maximum", "exclusiveMinimum", "maxLength", "maxItems"):
                if limit in told:
                    assert f"{told[limit]:,}" in words


def test_only_a_node_with_keys_speaks_of_them() -> None:
    assert "$ATM_API_KEY" in GUARDED
    assert "Scope of the key" in GUARDED
    assert "$ATM_API_KEY" not in OPEN
    assert "asks for no API key" in OPEN


def test_what_the_document_says_is_never_taken_for_html() -> None:
    nasty = document(has_keys=False)
    nasty["info"]["title"] = nasty["paths"]["/livez"]["get"]["summary"] = "<script>alert('x')</script>"
    assert "script" not in Reader(page.render(nasty).decode()).tags


def commands() -> list[str]:
    found = [unescape(text) for text in re.findall(r"<pre>(curl .*?)</pre>", OPEN, re.DOTALL)]
    assert len(found) == sum(len(item) for item in openapi.document(False)["paths"].values())
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples call curl")
def test_the_examples_of_the_page_work(make_site: Callable[..., Site]) -> None:
    site = make_site()
    task_id = site.create("nobody", delay=3600)
    for command in sorted(commands(), key=lambda text: ("/retry" in text, text)):
        script = command.replace(page.SERVER, site.url).replace(examples.TASK_ID, task_id)
        done = subprocess.run(
            ["bash", "-euc", script.replace("curl", "curl -sSf", 1)],
            env=os.environ | {"no_proxy": "*"},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        assert done.stdout
