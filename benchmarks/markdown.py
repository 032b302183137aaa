"""Markdown that the benchmarks write: tables, numbers, and the part of a page between two marks."""

import math
from collections.abc import Iterable
from pathlib import Path

from sb3_bn_ddpg.common.atomic_files import atomic_write

BEGIN, END = "<!-- results: written by report.py -->", "<!-- end of results -->"
"""Around the part of a page that a report replaces."""

MISSING = "-"


def table(header: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """
    :param header: Names of the columns
    :param lines: Their cells
    :return: A Markdown table, the first column aligned left, the others right
    """
    header = list(header)
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *lines])


def number(value: float) -> str:
    """
    :param value: A figure
    :return: Three significant digits at least, and every digit before the point
    """
    if math.isnan(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def numbers(values: Iterable[float]) -> str:
    """
    :param values: Figures, as of each seed
    :return: All of them
    """
    return "; ".join(map(number, values)) or MISSING


def replace_results(page: Path, parts: Iterable[str]) -> None:
    """
    Write paragraphs between the marks of a page.

    :param page: The page; if it does not exist, it will consist of them
    :param parts: The paragraphs
    """
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    with atomic_write(page) as file:
        file.write((before + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after).encode())
