"""python -m zfkit book | chapters | clean | train | doctor"""

import argparse
import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

from zfkit import book, datasets


def arguments() -> argparse.ArgumentParser:
    """The command line: one subcommand each for running, writing, checking, training."""
    parser = argparse.ArgumentParser(prog="python -m zfkit", description="Run, write and check the chapters.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("book", help="run chapters, print their verdicts, build the site")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter, for every chapter")
    run.add_argument("--out", type=Path, default=book.ROOT / "build", help="folder of what is made (build)")
    write = commands.add_parser("chapters", help="run with committed defaults, clean, rewrite notebooks/")
    for command in (run, write):
        command.add_argument("--chapters", metavar="02,03", help="by number or file name; all if not given")
        command.add_argument("--jobs", type=int, default=2, help="chapters at a time (2)")
        command.add_argument("--timeout", type=int, default=600, help="seconds a cell may take (600)")
    clean = commands.add_parser("clean", help="drop widget views and run traces from notebooks")
    clean.add_argument("files", nargs="*", type=Path, help="notebooks; all chapters if not given")
    clean.add_argument("--check", action="store_true", help="change nothing; exit 1 and say what is unclean")
    commands.add_parser("train", help="train a network by name; `train --help` lists what it takes", add_help=False)
    commands.add_parser("doctor", help="check the installation")
    return parser


def run_book(options) -> int:
    """Run chapters, print the table, build the site; 1 if a chapter failed."""
    sources, out = book.chapters(options.chapters), options.out.resolve()
    if options.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {options.jobs}")
    values = book.settings(sources, options.set)
    if out / "results" != book.RESULTS:
        for path in sources:
            values[path].setdefault("OUT", str(out / "results"))
    datasets.warm()
    runs = book.run_all(sources, out / "chapters", values, jobs=options.jobs, timeout=options.timeout)
    print(table(runs))
    page, notes = book.site(runs, out)
    print(*notes, f"site: {page}", sep="\n")
    return int(any(run.error for run in runs))


def write_chapters(options) -> int:
    """Run chapters as committed, rewrite those that ran clean and their data/results; 1 if one did not."""
    sources = book.chapters(options.chapters)
    datasets.warm()
    runs = book.run_all(
        sources,
        book.ROOT / "build" / "chapters",
        book.settings(sources, []),
        jobs=options.jobs,
        timeout=options.timeout,
    )
    print(table(runs))
    unclean = [fault for run in runs if not run.error for fault in rewrite(run)]
    print(*unclean, sep="\n", end="\n" if unclean else "")
    return int(bool(unclean) or any(run.error for run in runs))


def rewrite(run: book.Run) -> list[str]:
    """Put a run's cleaned notebook and results in their committed places, unless it has faults: those come back."""
    book.write(book.clean(book.read(run.target)), run.target)
    faults = book.faults(run.target)
    if not faults:
        kept = book.ROOT / "data" / "results"
        kept.mkdir(parents=True, exist_ok=True)
        for path in run.results:
            shutil.copy(path, kept / f"{path.name}.part")
            os.replace(kept / f"{path.name}.part", kept / path.name)
        book.write(book.read(run.target), run.source)
        if picture := book.thumbnail(run.source):
            (book.THUMBNAILS / f"{run.source.stem[:2]}.jpg").write_bytes(picture)
    return [f"{run.source.name} not written: {fault}" for fault in faults]


def table(runs: list[book.Run]) -> str:
    """The closing table: chapter, seconds, verdicts by claim; below it a line for every failure."""
    width = max((len(run.source.stem) for run in runs), default=7)
    lines = [f"{'chapter':{width}}  seconds  verdicts"]
    for run in runs:
        found = "; ".join(f"{number} {verdict}" for number, verdict in sorted(run.verdicts.items()))
        lines.append(f"{run.source.stem:{width}}  {run.seconds:7.1f}  {'FAILED' if run.error else found or '-'}")
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


def doctor() -> list[tuple[bool, str]]:
    """What was checked: true or false, and a line that says what is there or what is wrong and what to do."""
    lines = [(sys.version_info >= (3, 11), f"python {sys.version.split()[0]}; do install Python 3.11 or newer")]
    for package in ("torch", "torchvision", "ipywidgets", "jupyterlab", "papermill", "sphinx"):
        try:
            lines.append((True, f"{package} {importlib.metadata.version(package)}"))
        except importlib.metadata.PackageNotFoundError:
            lines.append((False, f"{package} is missing; do `make install`"))
    checks = (kernel, widgets, vision, space, data, weights)
    return lines + [check() for check in checks]


def kernel() -> tuple[bool, str]:
    """Does the kernel python3 start this very interpreter?"""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return False, "kernel python3 is missing; do `make install`"
    here = Path(program).name == program or os.path.samefile(Path(program).parent, Path(sys.executable).parent)
    return here, f"kernel python3 is {program}; do set JUPYTER_PREFER_ENV_PATH=1 or remove the stray kernel"


def widgets() -> tuple[bool, str]:
    """Is the part of ipywidgets there that JupyterLab loads?"""
    folder = Path(sys.prefix) / "share/jupyter/labextensions/@jupyter-widgets/jupyterlab-manager"
    return folder.is_dir(), "widgets in JupyterLab; do `pip install jupyterlab_widgets` in this environment"


def vision() -> tuple[bool, str]:
    """Do torch and torchvision belong together, and is there a GPU?"""
    try:
        import torch
        import torchvision  # noqa: F401 (its import fails where the two builds differ)
    except (ImportError, RuntimeError) as error:
        return (False, f"torch with torchvision: {str(error).splitlines()[0]}; do install builds that belong together")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, chapters run on the CPU"
    return True, f"device: {gpu}"


def space() -> tuple[bool, str]:
    """Is there room for caches and a site?"""
    free = shutil.disk_usage(book.ROOT).free / 2**30
    return free > 2, f"disk: {free:.0f} GiB free; do make room, 2 GiB are needed"


def data() -> tuple[bool, str]:
    """Which data are at hand?"""
    root, cache = (os.environ.get("ZFKIT_DATA"), Path(os.environ.get("ZFKIT_CACHE", book.ROOT / "data" / "cache")))
    made = "menagerie in the cache" if any(cache.glob("*menagerie*")) else "menagerie rendered when first asked for"
    if root and not Path(root).is_dir():
        return (False, f"data: ZFKIT_DATA={root} is no folder; do set it to where the real sets lie, or unset it")
    sets = ", ".join(sorted(path.name for path in Path(root).iterdir())) if root else "no ZFKIT_DATA"
    return True, f"data: {made}; {sets}"


def weights() -> tuple[bool, str]:
    """Are the shipped weights there, each with its sidecar?"""
    files = sorted((book.ROOT / "data" / "weights").glob("*.safetensors"))
    names = [path.stem for path in files if json_beside(path)]
    return bool(names), f"weights: {', '.join(names) or 'none'}; do `git checkout data/weights` or `train`"


def json_beside(path: Path) -> bool:
    """Is there a readable sidecar beside a weight file?"""
    try:
        return bool(json.loads(path.with_suffix(".json").read_text()))
    except (OSError, ValueError):
        return False


def show_doctor(options) -> int:
    """Print a line for every check; 1 if one is wrong."""
    checks = doctor()
    for good, line in checks:
        print("ok   " if good else "wrong:", line.split("; do ")[0] if good else line)
    return int(not all(good for good, _ in checks))


def main(words: list[str] | None = None) -> int:
    """Exit status of a command line; a bad argument is one line on stderr and 2."""
    options, rest = arguments().parse_known_args(words)
    if rest and options.command != "train":
        arguments().error(f"unknown argument {' '.join(rest)}")
    commands = {"book": run_book, "chapters": write_chapters, "clean": clean, "doctor": show_doctor}
    try:
        if options.command == "train":
            return train_command(rest)
        return commands[options.command](options)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"zfkit {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zfkit {options.command}: stopped", file=sys.stderr)
        return 130


def train_command(words: list[str]) -> int:
    """`python -m zfkit train NAME ...`: trains one of CONFIGS, or goes on with it; exit status 0."""
    from zfkit import recipes, training, weights  # torch is imported for this command alone

    parser = argparse.ArgumentParser("python -m zfkit train", description="Train a network, or go on with it.")
    field = dict(action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("name", help=f"one of {', '.join(recipes.CONFIGS)}")
    parser.add_argument("--set", **field, help="Config field or network.KEY")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--publish", action="store_true", help="write the result to data/weights")
    options = parser.parse_args(words)
    config = recipes.changed(options.name, options.set)
    run = training.fit(config, device=options.device)
    share, count = run.history["test_accuracy"], run.history["test_images"]
    print(f"{config.name}: {share:.2%} of {count} test images are right")
    if options.publish:
        print(weights.publish(config, run.net, run.history, run.snapshots))
    return 0


if __name__ == "__main__":
    sys.exit(main())
