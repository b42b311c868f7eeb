"""python -m zfkit book | chapters | clean | train | doctor"""

import argparse
import sys
from pathlib import Path

# jsonschema would build a grammar of it at import, two seconds for links that no notebook has
sys.modules.setdefault("rfc3987_syntax", None)

from . import book  # noqa: E402
from .files import repo_root, results_folder, write_bytes  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    """The command line: one subcommand each for running, writing, checking, training."""
    parser = argparse.ArgumentParser(
        prog="python -m zfkit", description="Run, write and check the chapters."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("book", help="run chapters, print their verdicts, build the site")
    pair = dict(action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--set", **pair, help="a parameter, for every chapter")
    out = repo_root() / "build"
    run.add_argument("--out", type=Path, default=out, help="folder of what is made (build)")
    write = commands.add_parser("chapters", help="run as committed, clean, rewrite notebooks/")
    for command in (run, write):
        command.add_argument("--chapters", metavar="02,03", help="by number or name; else all")
        command.add_argument("--jobs", type=int, default=2, help="chapters at a time (2)")
        command.add_argument("--timeout", type=int, default=600, help="seconds a cell (600)")
    clean = commands.add_parser("clean", help="drop widget views and run traces from notebooks")
    clean.add_argument("files", nargs="*", type=Path, help="notebooks; else all chapters")
    clean.add_argument("--check", action="store_true", help="change nothing; 1 if unclean")
    train = "train a network by name; `train --help` lists what it takes"
    commands.add_parser("train", help=train, add_help=False)
    commands.add_parser("doctor", help="check the installation")
    return parser


def run_book(options) -> int:
    """Run chapters, print the table, build the site; 1 if a chapter failed."""
    sources, out = book.chapters(options.chapters), options.out.expanduser().absolute()
    values = book.settings(sources, options.set)
    if out != repo_root() / "build":
        for path in sources:
            values[path].setdefault("OUT", str(out / "results"))
    runs = run_all(sources, out / "chapters", values, options)
    page, notes = book.site(runs, out)
    print(*notes, f"site: {page}", sep="\n")
    return int(any(run.error for run in runs))


def run_all(sources: list[Path], folder: Path, values: dict, options) -> list[book.Run]:
    """Run chapters, the drawings made beforehand, and print their table."""
    from . import datasets

    for name in ("jobs", "timeout"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} must be 1 or more, got {getattr(options, name)}")
    datasets.warm()
    limits = dict(jobs=options.jobs, timeout=options.timeout)
    runs = book.run_all(sources, folder, values, **limits)
    print(table(runs))
    return runs


def write_chapters(options) -> int:
    """Run chapters as committed, rewrite those that ran clean, and their results; else 1."""
    sources = book.chapters(options.chapters)
    values = book.settings(sources, [])
    runs = run_all(sources, repo_root() / "build" / "chapters", values, options)
    unclean = [fault for run in runs if not run.error for fault in rewrite(run)]
    print(*unclean, sep="\n", end="\n" if unclean else "")
    return int(bool(unclean) or any(run.error for run in runs))


def rewrite(run: book.Run) -> list[str]:
    """Put a run's cleaned notebook and results in their places; its faults, if it has any."""
    book.write(book.clean(book.read(run.target)), run.target)
    faults = book.faults(run.target)
    if not faults:
        for path in run.results:
            write_bytes(results_folder() / path.name, path.read_bytes())
        book.write(book.read(run.target), run.source)
        if picture := book.thumbnail(run.source):
            write_bytes(book.THUMBNAILS / f"{run.source.stem[:2]}.jpg", picture)
    return [f"{run.source.name} not written: {fault}" for fault in faults]


def table(runs: list[book.Run]) -> str:
    """The closing table: chapter, seconds, verdicts by claim; below it a line a failure."""
    width = max((len(run.source.stem) for run in runs), default=7)
    lines = [f"{'chapter':{width}}  seconds  verdicts"]
    for run in runs:
        found = "; ".join(
            f"{number} {verdict}" for number, verdict in sorted(run.verdicts.items())
        )
        said = "FAILED" if run.error else found or "-"
        lines.append(f"{run.source.stem:{width}}  {run.seconds:7.1f}  {said}")
    lines += [f"{run.source.stem} failed in {run.error}" for run in runs if run.error]
    return "\n".join(lines)


def clean(options) -> int:
    """Clean notebooks, or with --check only say what is unclean; 1 if anything was found."""
    files = options.files or book.chapters()
    if missing := [str(path) for path in files if not path.is_file()]:
        raise ValueError(f"no such notebook: {', '.join(missing)}")
    if not options.check:
        for path in files:
            book.write(book.clean(book.read(path)), path)
    found = [f"{path}: {fault}" for path in files for fault in book.faults(path)]
    print(*found, sep="\n", end="\n" if found else "")
    return int(bool(found))


def show_doctor(options) -> int:
    """Print a line for every check; 1 if one is wrong."""
    from .book.doctor import doctor

    checks = doctor()
    for good, line in checks:
        print("ok   " if good else "wrong:", line.split("; do ")[0] if good else line)
    return int(not all(good for good, _ in checks))


COMMANDS = {"book": run_book, "chapters": write_chapters, "clean": clean, "doctor": show_doctor}


def main(words: list[str] | None = None) -> int:
    """Exit status of a command line; a bad argument is one line on stderr and 2."""
    options, rest = arguments().parse_known_args(words)
    if rest and options.command != "train":
        arguments().error(f"unknown argument {' '.join(rest)}")
    try:
        if options.command == "train":
            return train_command(rest)
        return COMMANDS[options.command](options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"zfkit {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zfkit {options.command}: stopped", file=sys.stderr)
        return 130


def train_arguments() -> argparse.ArgumentParser:
    """What `python -m zfkit train` takes."""
    from zfkit import ablations, recipes  # torch is imported for this command alone

    parser = argparse.ArgumentParser(
        "python -m zfkit train", description="Train a network, or go on with it."
    )
    field = dict(action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("name", nargs="?", help=f"one of {', '.join(recipes.CONFIGS)}")
    several = "instead of a name: all recorded trainings of this chapter that are missing"
    parser.add_argument("--chapter", choices=[ablations.CHAPTER], help=several)
    parser.add_argument("--set", **field, help="Config field or network.KEY")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--publish", action="store_true", help="write the result to data/weights"
    )
    return parser


def train_command(words: list[str]) -> int:
    """`python -m zfkit train NAME ...`: trains one of CONFIGS, or goes on; exit status 0.

    `train --chapter 09` trains and records what data/runs/09 lacks.
    """
    from zfkit import ablations, recipes, training, weights

    parser = train_arguments()
    options = parser.parse_args(words)
    if bool(options.name) == bool(options.chapter) or (options.chapter and options.set):
        parser.error("give a name, or --chapter alone")
    if options.chapter:
        ablations.train_rows(device=options.device)
        return 0
    config = recipes.changed(options.name, options.set)
    run = training.fit(config, device=options.device)
    share, count = run.history["test_accuracy"], run.history["test_images"]
    print(f"{config.name}: {share:.2%} of {count} test images are right")
    if options.publish:
        print(weights.publish(config, run.net, run.history, run.snapshots))
    return 0


if __name__ == "__main__":
    sys.exit(main())
