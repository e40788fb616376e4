"""The README as a package page shows it, far from the files that it links to."""

import re

# Where the project lives, e.g. https://example.org/somebody/iocp_loop. The workflow that makes a release says it; other
# builds leave the links as they are.
REPOSITORY_VARIABLE = "IOCP_LOOP_REPOSITORY"
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)")


def with_absolute_links(text: str, repository: str) -> str:
    """Each link to a file of the checkout leads to the same file in the repository."""
    if not repository:
        return text
    return LINK.sub(lambda found: f"]({repository.rstrip('/')}/blob/main/{found[1]})", text)


def urls(repository: str) -> dict[str, str]:
    """What `[project.urls]` would say."""
    if not repository:
        return {}
    base = repository.rstrip("/")
    return {
        "Source": base,
        "Documentation": f"{base}/blob/main/docs/index.md",
        "Changelog": f"{base}/blob/main/CHANGELOG.md",
        "Issues": f"{base}/issues",
    }
