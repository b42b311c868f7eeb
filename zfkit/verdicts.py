"""What a run says about the paper's claims: its verdicts, and the file that keeps them."""

import ast
import hashlib
import json
import math
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path

from .claims import CLAIMS, Claim
from .files import read_json, repo_root, results_folder, write_json
from .intervals import FEWEST, Interval, factor, interval

__all__ = ["Interval", "announce", "interval", "record", "recorded", "start"]
NAMED = ("DATASET", "NETWORK", "SEED", "QUICK")  # parameters that a file's name spells out


@dataclass(frozen=True)
class Verdict:
    """What a run says about a claim; `str` gives the line that chapters print.

    verdict: "holds", "contradicted", "undecided" or "not testable here". rows: how many the
    interval was made from. reason: what is missing, or what would decide.
    """

    claim: int
    verdict: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    rows: int | None = None
    reason: str = ""

    def __str__(self):
        line = f"claim {self.claim} {self.verdict}"
        if self.value is not None:
            line += f": {_numbers(self.value, self.interval, CLAIMS[self.claim].bound)}"
        if not self.reason:
            return line
        return f"{line}{': ' if self.value is None else '; '}{self.reason}"


def _numbers(value: float, ends, bound: float) -> str:
    """Value, interval and bound, in digits enough to see on which side of the bound it lies."""
    if ends is None:
        return f"{value:.3g}, bound {bound:g}"
    size = max(abs(bound), abs(ends[0]), abs(ends[1]))
    if 0 < size < 1e-3:
        return f"{value:.1e} [{ends[0]:.1e}, {ends[1]:.1e}], bound {bound:g}"
    digits = 2 if size < 100 else 1
    while digits < 6 and any(
        float(f"{end:.{digits}f}") == abs(bound) != abs(end) for end in map(abs, ends)
    ):
        digits += 1
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}], bound {:g}".format(value, *ends, bound, d=digits)


def announce(*numbers: int) -> None:
    """Print claims before their numbers are known: text, statistic, control and rule."""
    for number in numbers:
        claim = _claim(number)
        print(f"{number}. {claim.text}")
        for name in ("statistic", "control", "rule"):
            line = f"{name}: {getattr(claim, name)}"
            print(textwrap.fill(line, 88, initial_indent="   ", subsequent_indent="      "))


def _claim(number: int) -> Claim:
    if number not in CLAIMS:
        raise ValueError(f"no claim {number!r}; valid: 1 to {len(CLAIMS)}")
    return CLAIMS[number]


class Book:
    """The verdicts of one run, in a JSON file of its own that names all of its parameters."""

    def __init__(self, chapter: str, parameters: dict, folder: Path, defaults: dict):
        self.chapter, self.parameters = chapter, parameters
        self.path = folder / f"{file_name(chapter, parameters, defaults)}.json"
        self.verdicts: dict[int, dict] = {}

    def write(self, verdicts: dict[int, dict]):
        """Write the file anew; only then do the verdicts count as recorded."""
        named = dict(chapter=self.chapter, parameters=self.parameters)
        write_json(self.path, {**named, "claims": list(verdicts.values())})
        self.verdicts = verdicts


_book: Book | None = None


def start(chapter: str, parameters: dict, out: str = "") -> None:
    """Open the book of a run, an empty file: what `record` says from now on goes there.

    chapter: its number, "03". parameters: every name of the chapter's parameters cell with the
    value that this run has. out: folder of the file; "" is build/results. ValueError for a name
    that the cell has and `parameters` lacks, or the other way round, and for a bad seed.
    """
    global _book
    defaults = {name: value for name, (_, value) in _parameters_of(chapter).items()}
    if defaults and (odd := set(defaults) - {"OUT"} ^ set(parameters) - {"OUT"}):
        names = ", ".join(sorted(odd))
        raise ValueError(
            f"chapter {chapter}: parameters given and those of its cell differ: {names}"
        )
    check_seed(parameters.get("SEED", 0))
    folder = Path(out).expanduser() if out else repo_root() / "build" / "results"
    book = Book(chapter, {n: v for n, v in parameters.items() if n != "OUT"}, folder, defaults)
    book.write({})
    _book = book


def check_seed(seed) -> None:
    """ValueError unless a seed is one that numpy and torch both take."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"SEED must be 0 to {2**32 - 1}, got {seed!r}")


def file_name(chapter: str, parameters: dict, defaults: dict) -> str:
    """A run's name: chapter-dataset-network-sSEED-quick|long, and a hash where that is not all.

    The hash, 6 hex digits over all parameters except OUT, is there when a parameter that the
    name does not spell out differs from the chapter's default, or a value had to be rewritten
    to be part of a name: runs that differ in anything have files of their own.
    """
    kept = {name: value for name, value in parameters.items() if name != "OUT"}
    length = "quick" if kept.get("QUICK", True) else "long"
    spelt = [
        chapter,
        kept.get("DATASET", ""),
        kept.get("NETWORK", ""),
        f"s{kept.get('SEED', 0)}",
    ]
    plain = [re.sub(r"[^\w.-]", "_", str(part))[:60] for part in spelt]
    others = set(kept) - set(NAMED)
    if plain != spelt or any(
        name not in defaults or kept[name] != defaults[name] for name in others
    ):
        text = json.dumps(kept, sort_keys=True, default=str)
        length += "-" + hashlib.sha256(text.encode()).hexdigest()[:6]
    return "-".join([*plain, length])


def parameters_of(path: Path) -> dict[str, tuple[str, object]]:
    """Name -> (type name, default) of a notebook's one cell tagged `parameters`.

    ValueError where it is missing, there twice, or holds anything but annotated constants.
    """
    cells = [
        cell
        for cell in read_json(path).get("cells", [])
        if "parameters" in cell.get("metadata", {}).get("tags", [])
    ]
    if len(cells) != 1:
        raise ValueError(f"{path.name}: {len(cells)} cells tagged parameters, not 1")
    known = {}
    for line in ast.parse("".join(cells[0]["source"])).body:
        try:
            known[line.target.id] = line.annotation.id, ast.literal_eval(line.value)
        except (AttributeError, ValueError):
            raise ValueError(
                f"{path.name}: not a typed parameter: {ast.unparse(line)}"
            ) from None
    return known


def _parameters_of(chapter: str) -> dict[str, tuple[str, object]]:
    """The parameters of a chapter's notebook; none where there is no such notebook."""
    paths = sorted((repo_root() / "notebooks").glob(f"{chapter}_*.ipynb"))
    return parameters_of(paths[0]) if paths else {}


def record(
    number: int, value, interval, *, reason: str = "", detail: dict | None = None, n=None
) -> Verdict:
    """The verdict on a claim, written down in the file that `start` opened.

    value, interval: the statistic and its 95 % interval as `interval` gives them. A value
    without an interval is undecided; None for both, with a reason, says that this run cannot
    test the claim. detail: further numbers to keep, as JSON. n: how many networks or folds an
    interval made elsewhere is over. ValueError before `start`, for an unknown claim, what is
    not finite, a value outside of its interval, or another number of networks or folds than
    `claims` fixed.

    >>> print(record(9, *interval(gains)))
    claim 9 holds: 0.12 [0.10, 0.15], bound 0
    """
    if _book is None:
        raise ValueError("no run is open: call zfkit.verdicts.start(chapter, parameters) first")
    claim = _claim(number)
    rows = n if n is not None else getattr(interval, "rows", None)
    verdict = _decide(claim, value, interval, rows, reason)
    kept = {**asdict(verdict), "text": claim.text, "unit": claim.unit, "bound": claim.bound}
    try:
        _book.write(
            {**_book.verdicts, number: {**kept, "side": claim.side, "detail": detail or {}}}
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"claim {number}: detail is not JSON: {error}") from None
    return verdict


def _decide(claim: Claim, value, ends, rows: int | None, reason: str) -> Verdict:
    number, unit = claim.number, claim.unit
    if value is None:
        if not reason:
            raise ValueError(f"claim {number} without a value needs a reason")
        return Verdict(number, "not testable here", reason=reason)
    held = (value, value) if ends is None else ends
    low, high = _checked(number, float(value), held)
    wanted = claim.needed(
        str(_book.parameters.get("DATASET", "menagerie")).startswith("menagerie")
    )
    if ends is None:
        why = f"no interval, which takes {wanted or FEWEST} {unit}"
        return Verdict(number, "undecided", low, None, rows, f"{why}; {reason}".rstrip("; "))
    if wanted and rows != wanted:
        raise ValueError(
            f"claim {number} is over {wanted} {unit}, fixed beforehand; got {rows}"
        )
    verdict, value = claim.decide(low, high), float(value)
    if verdict == "undecided":
        more = _more(claim, value, low, high, rows)
        reason = "; ".join(filter(None, (more, reason)))
    return Verdict(number, verdict, value, (low, high), rows, reason)


def _checked(number: int, value: float, ends) -> tuple[float, float]:
    """The ends of an interval, once they are known to be finite and to hold the value."""
    low, high = (float(end) for end in ends)
    if not math.isfinite(value + low + high):
        raise ValueError(f"claim {number}: {value} ({low}, {high}) must be finite")
    slack = 1e-9 * max(1.0, abs(value))
    if not low - slack <= value <= high + slack:
        raise ValueError(
            f"claim {number}: value {value:g} lies outside of its interval ({low:g}, {high:g})"
        )
    return low, high


def _more(claim: Claim, value: float, low: float, high: float, rows: int | None) -> str:
    """How many rows would shrink the interval until it clears the bound, the value as it is."""
    margin, wide = claim.margin(value), max(value - low, high - value)
    if not rows or rows < FEWEST:
        return ""
    aim = factor(rows) / math.sqrt(rows) * margin / wide if wide else 0.0
    most = 1000 * rows
    if not aim or factor(most) / math.sqrt(most) > aim:
        return f"no number of {claim.unit} would decide"
    few, many = rows, most
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (
            (middle, many) if factor(middle) / math.sqrt(middle) > aim else (few, middle)
        )
    digits = 10 ** max(0, len(str(many)) - 2)
    return f"about {-(-many // digits) * digits} {claim.unit} would decide, here {rows}"


def recorded(chapter: str | None = None, folder: Path | None = None, **where) -> list[dict]:
    """The runs in data/results (or `folder`): dicts with chapter, parameters, claims and path.

    chapter: only its runs. where: parameters that must have these values, or one of a tuple's.
    claims: number -> dict with verdict, value, interval, reason, detail. Files of the first
    layout, which named four parameters, are read too; what did not hold there is judged by its
    interval.

    >>> recorded("05", DATASET="menagerie")[0]["claims"][14]["verdict"]
    'holds'
    """
    runs = []
    pattern = f"{chapter or '[0-9][0-9]'}-*.json"
    for path in sorted((folder or results_folder()).glob(pattern)):
        kept = read_json(path)
        names = kept.get("parameters") or {
            n: kept[n.lower()] for n in NAMED if n.lower() in kept
        }
        if all(names.get(n) in (v if isinstance(v, tuple) else (v,)) for n, v in where.items()):
            claims = {row["claim"]: _read(row) for row in kept["claims"]}
            runs.append(
                dict(chapter=kept["chapter"], parameters=names, claims=claims, path=path)
            )
    return runs


def _read(row: dict) -> dict:
    """A recorded claim; where its verdict is of the first layout, judged by its interval."""
    four = ("holds", "contradicted", "undecided", "not testable here")
    if row["verdict"] not in four:
        return {**row, "verdict": CLAIMS[row["claim"]].decide(*row["interval"])}
    return row
