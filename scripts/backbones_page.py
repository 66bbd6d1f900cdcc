"""Write the tables of ``docs/backbones.md`` anew from the table of aliases: ``python -m scripts.backbones_page``."""

from __future__ import annotations

import re
from pathlib import Path

from embedcache.backbones.aliases import ALIASES
from embedcache.backbones.base import Alias
from embedcache.backbones.listing import TITLES, parameters_of

PAGE = Path(__file__).parents[1] / "docs" / "backbones.md"
_BEGIN, _END = "<!-- tables: python -m scripts.backbones_page -->\n", "<!-- end of tables -->"


def tables() -> str:
    """A Markdown table for each modality, in the order of the table of aliases."""
    return "\n".join(_table(modality, title) for modality, title in TITLES.items())


def _table(modality: str, title: str) -> str:
    lines = [f"### {title}", "", "| alias | checkpoint | dims | M | input | licence | report |", f"|{'---|' * 7}"]
    lines += [_row(name, one) for name, one in ALIASES.items() if one.modality == modality]
    return "\n".join([*lines, ""])


def _row(name: str, one: Alias) -> str:
    checkpoint = "comes with embedcache" if one.ships else f"`{one.family}:{one.checkpoint}`"
    licence = f"{one.licence}, gated" if one.gated else one.licence
    cells = (f"`{name}`", checkpoint, one.dim, parameters_of(one), one.input, licence, one.used_by)
    return f"| {' | '.join(map(str, cells))} |".replace("|  |", "| |")


def written(page: str) -> str:
    """The page with its tables as they ought to be."""
    return re.sub(
        f"{re.escape(_BEGIN)}.*{re.escape(_END)}", lambda _: f"{_BEGIN}\n{tables()}\n{_END}", page, flags=re.S
    )


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
