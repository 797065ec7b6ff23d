"""The OpenAPI document as a page."""


def render(document: dict[str, object]) -> tuple[bytes, dict[str, str]]:
    return b"", {}
