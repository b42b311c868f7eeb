"""Source of a cell that a chapter's copy ends in: it moves every control of every slider box in the kernel.

What it prints, as JSON: box -> control -> values tried, alt texts seen, pictures seen, and whether each picture shown
was the one that a direct call of the box's functions gives.
"""

import asyncio
import base64
import json

from zfkit import explorers


def candidates(control) -> list:
    """Values to try: first, last and a middle one of a control's range or options, in the range it has now."""
    if hasattr(control, "options"):
        options = [one[1] if isinstance(one, tuple) else one for one in control.options]
        return list(dict.fromkeys([options[0], options[-1], options[len(options) // 2]]))
    steps = (control.max - control.min) // control.step
    return list(dict.fromkeys(control.min + control.step * n for n in (0, steps, steps // 2)))


def right(box) -> bool:
    """Whether the box shows what its functions give for its values: the picture's bytes and, as alt text, the words."""
    picture, alt = box.render(**box.values()), box.describe(**box.values())
    shown = box.children[-1].value
    data = base64.b64encode(explorers.encode(picture)).decode()
    return data in shown and f'alt="{explorers.html.escape(alt)}"' in shown


async def box_moved(box) -> dict:
    """What a box showed for the tried values of each control."""
    found = {}
    for name, control in box.controls.items():
        seen = dict(values=[], alts=[], pictures=[], right=[])
        for value in candidates(control):
            control.value = min(value, getattr(control, "max", value))
            seen["values"].append(control.value)
            seen["alts"].append(box.describe(**box.values()))
            seen["pictures"].append(hash(box.children[-1].value.partition("base64,")[2]))  # without its words
            seen["right"].append(right(box))
        found[name] = seen
    if box.task:  # the finer picture of the last place
        await asyncio.wait_for(box.task, 300)
        found[name]["right"].append(right(box))
    return found


async def report() -> str:
    """All boxes, as JSON."""
    return json.dumps({name: await box_moved(box) for name, box in explorers.BOXES.items()})
