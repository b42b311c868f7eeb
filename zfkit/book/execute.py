"""One chapter run by papermill in a process of its own: JSON in on stdin, marked lines out.

Values go to papermill as Python objects: through its command line they would be read as YAML,
which takes 1e-05 for a text and breaks an emoji in two. `@cell` is printed before each cell,
`@error` with one line where the run failed. Imports nothing of zfkit, to start quickly.
"""

import json
import sys

# jsonschema would build a grammar of it at import, two seconds for links that no notebook has
sys.modules.setdefault("rfc3987_syntax", None)

import papermill  # noqa: E402
from nbclient.exceptions import CellTimeoutError, DeadKernelError  # noqa: E402

INJECTED = {"injected-parameters", "papermill-error-cell-tag"}  # cells that a source lacks


def execute(job: dict) -> str:
    """What went wrong in one line, empty if nothing did.

    job: source, target (of the executed notebook), values (typed parameters by name), cwd,
    timeout (seconds a cell). A failing cell is named by its number in the source.
    """
    at = 0

    def on_cell_start(cell, cell_index):
        nonlocal at
        if INJECTED.isdisjoint(cell.metadata.get("tags", [])):
            at += 1
            print("@cell", flush=True)

    options = dict(execution_timeout=job["timeout"], on_cell_start=on_cell_start)
    options |= dict(kernel_name="python3", progress_bar=False, cwd=job["cwd"])
    options["coalesce_streams"] = True  # how prints arrive hangs on how busy the machine is
    try:
        papermill.execute_notebook(job["source"], job["target"], job["values"], **options)
    except CellTimeoutError:
        return f"cell {at}: over {job['timeout']} s; raise --timeout"
    except DeadKernelError:
        return f"cell {at}: its kernel died; was memory short?"
    except papermill.exceptions.PapermillExecutionError as error:
        said = (error.evalue.strip().splitlines() or [""])[0]
        return f"cell {at}: {error.ename}: {said}"
    except Exception as error:  # nothing of papermill's may become a traceback
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    if wrong := execute(json.load(sys.stdin)):
        print("@error", wrong, flush=True)
    sys.exit(bool(wrong))
