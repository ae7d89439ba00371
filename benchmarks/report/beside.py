"""Other runs beside the one that is measured, for the picture over the student sizes in its report.

    kdedge benchmark --out artifacts/lite --beside artifacts/lite-s,artifacts/lite-xs

`load_beside` reads their reports; `check_beside` refuses what was measured on another host or on other test images,
before anything is measured here. Only rows go into the report, no path of this machine.
"""

from collections.abc import Mapping
from typing import Any

from kdedge.benchmarks.report.file import find_report, load_report
from kdedge.benchmarks.report.pareto import check_same_host, check_same_test_images, run_name, tabulate
from kdedge.errors import InputError
from kdedge.files import file_sha256
from kdedge.parsing import parse_paths

__all__ = ["beside_sha256", "beside_table", "check_beside", "load_beside"]

_FLAG = "--beside"
_THIS = "this run"


def load_beside(text: str) -> dict[str, dict[str, Any]]:
    """Return the reports that ``--beside`` names, by their paths.

    Raises:
        InputError: One is missing or no report.
    """
    return {str(path): load_report(path) for path in parse_paths(text, _FLAG)}


def beside_sha256(text: str) -> list[str]:
    """Return the SHA-256 of every report that ``--beside`` names.

    Raises:
        InputError: One is missing.
    """
    return [file_sha256(find_report(path)) for path in parse_paths(text, _FLAG)]


def check_beside(
    others: Mapping[str, Mapping[str, Any]], host: Mapping[str, Any], data: str, images: Mapping[str, Any]
) -> None:
    """Refuse reports that cannot stand in one picture with what is about to be measured.

    Args:
        others: From `load_beside`.
        host: From `kdedge.benchmarks.host.host_record`.
        data: Name of the data set.
        images: ``images_sha256`` and ``image_size`` of its test images, and ``n`` once it is known.

    Raises:
        InputError: One is of another host, or of other test images.
    """
    if not others:
        return
    reports = [{"run": {"data": data}, "accuracy": images, "host": host}, *others.values()]
    if "n" not in images:
        reports = [{**report, "accuracy": {**report["accuracy"], "n": None}} for report in reports]
    try:
        check_same_test_images(reports, [_THIS, *others])
        check_same_host(reports, [_THIS, *others])
    except InputError as error:
        error.args = (f"{_FLAG}: {error}",)
        raise


def beside_table(report: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the table of a report and those beside it as `tabulate` makes it; None without others."""
    if not others:
        return None
    table = tabulate([report, *others.values()], [_THIS, *others])
    for row in table["rows"]:
        if row["run"] == "A":
            row["label"] = f"{row['student'] or 'student'} ({_THIS})"
    for origin in table["reports"].values():
        origin["report"] = run_name(origin["report"])
    return table
