"""What mkdocs needs to be told of this repository: where packages lie, and what pages link to outside of docs/.

The pages are written to be read in the repository too, so they link to the README, to examples and to folders. In the
site these become pages and files under ``repository/``; a link to nothing stays as it is, and mkdocs warns of it.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PACKAGES = ROOT / "build" / "reference"
LINK = re.compile(r"^```.*?^```|\]\(([^)\s#]+)(#[^)\s]*)?\)", re.MULTILINE | re.DOTALL)
"""A block of code, to be passed over, or the target and the anchor of a link."""


@event_priority(100)  # before mkdocstrings, which asks once whether the folder is there
def on_config(config: MkDocsConfig) -> None:
    """Lay out the packages under their import names, where the reference is read from.

    ``setup.py`` maps the folders; what is installed may be another version, or a mapping that only Python follows.
    """
    shutil.rmtree(PACKAGES, ignore_errors=True)
    for package, folder in _package_folders().items():
        place = PACKAGES.joinpath(*package.split("."))
        place.mkdir(parents=True, exist_ok=True)
        for module in (ROOT / folder).glob("*.py"):
            (place / module.name).symlink_to(module)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add what pages link to outside of ``docs/``, and what those link to in turn."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    while waiting:
        page = waiting.pop()
        for target in _link_targets(page):
            uri = _site_uri(target)
            if uri is None or files.get_file_from_path(uri) is not None:
                continue
            if target.is_dir():
                file = File.generated(config, uri, content=_list_of_pages(target))
            else:
                file = File.generated(config, uri, abs_src_path=str(target))
                if target.suffix == ".md":
                    waiting.append(target)
            files.append(file)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that hold in the repository into links that hold in the site."""
    if page.file.abs_src_path is None:
        return markdown
    source, here = Path(page.file.abs_src_path), posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        target = _target(source, match[1])
        uri = None if target is None else _site_uri(target)
        if uri is None:
            return match[0]
        return f"]({posixpath.relpath(uri, here or '.')}{match[2] or ''})"

    return LINK.sub(replaced, markdown)


def _package_folders() -> dict[str, str]:
    for node in ast.parse((ROOT / "setup.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PACKAGES":
            packages: dict[str, str] = ast.literal_eval(node.value)
            return packages
    raise ValueError("setup.py assigns no PACKAGES")


def _link_targets(page: Path) -> Iterator[Path]:
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = _target(page, match[1])
        if target is not None:
            yield target


def _target(page: Path, link: str | None) -> Path | None:
    """Return the file or folder that a link of ``page`` leads to; None where it is none of the repository."""
    if link is None or "://" in link:
        return None
    target = Path(os.path.normpath(page.parent / link))
    return target if target.is_relative_to(ROOT) and target.exists() else None


def _site_uri(target: Path) -> str | None:
    """Return where the site has ``target``; None for a folder without pages."""
    if target.is_dir():
        if not any(target.glob("*.md")):
            return None
        target = target / "index.md"
    within = target.relative_to(DOCS) if target.is_relative_to(DOCS) else None
    return within.as_posix() if within else f"repository/{target.relative_to(ROOT).as_posix()}"


def _list_of_pages(folder: Path) -> str:
    lines = [f"# {folder.name.capitalize()}", ""]
    for page in sorted(folder.glob("*.md")):
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({page.name})")
    return "\n".join(lines) + "\n"
