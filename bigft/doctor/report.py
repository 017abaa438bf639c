"""Findings as a table for people."""

from collections.abc import Iterator, Sequence

from bigft.doctor.finding import Finding

_SIGNS = {True: "ok", False: "FAIL"}


def render_findings(findings: Sequence[Finding]) -> str:
    """Return the table, what is wrong, why it matters, and what repairs it."""
    rows = list(_rows(findings))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)] if rows else [0, 0]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c}".rstrip() for a, b, c in rows]
    faults = [finding for finding in findings if not finding.ok]
    for number, finding in enumerate(faults, 1):
        lines += ["", f"{number}. {_name(finding)}: {finding.found}"]
        lines += [f"   why     {finding.why}", f"   repair  {finding.repair}"]
    looked = sum(finding.applies for finding in findings)
    verdict = "ready" if not faults else f"{len(faults)} of {looked} checks failed"
    return "\n".join([*lines, "", verdict]) + "\n"


def _rows(findings: Sequence[Finding]) -> Iterator[tuple[str, str, str]]:
    """Yield a line for each check; hosts on which all is well share one."""
    shared: dict[str, list[Finding]] = {}
    for finding in findings:
        shared.setdefault(finding.name, []).append(finding)
    for name, of_name in shared.items():
        well = [finding for finding in of_name if finding.ok]
        for finding in of_name:
            if not finding.ok:
                where = f"{finding.host}: " if finding.host else ""
                yield _SIGNS[False], name, where + finding.found
        if not well:
            continue
        sign = _SIGNS[True] if any(finding.applies for finding in well) else "-"
        if not well[0].host:
            for finding in well:
                yield _SIGNS[True] if finding.applies else "-", name, finding.found
            continue
        values = list(dict.fromkeys(finding.found for finding in well))
        hosts = f"{len(well)} host{'s' if len(well) > 1 else ''}"
        more = len(values) - 1
        others = f", and {more} other value{'s' if more > 1 else ''}" if more else ""
        yield sign, name, f"{hosts}: {values[0]}{others}"


def _name(finding: Finding) -> str:
    return f"{finding.name} on {finding.host}" if finding.host else finding.name
