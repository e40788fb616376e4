"""What the package's metadata says beside pyproject.toml: the README, and where the project lives."""

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

sys.path.insert(0, str(Path(__file__).parent))

from devtool import package_page


class ProjectMetadata(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        repository = os.environ.get(package_page.REPOSITORY_VARIABLE, "")
        metadata["readme"] = {
            "content-type": "text/markdown",
            "text": package_page.with_absolute_links(text, repository),
        }
        metadata["urls"] = package_page.urls(repository)
