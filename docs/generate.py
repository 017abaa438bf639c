"""Write the generated pages, and the examples in launch_scripts/: `python docs/generate.py`."""

from pathlib import Path

from bigft.launch.render.examples import render_examples
from bigft.run.reference import render_reference

PAGES = {"reference/settings.md": render_reference}
ROOT = Path(__file__).resolve().parents[1]

if __name__ == "__main__":
    for name, render in PAGES.items():
        (ROOT / "docs" / name).write_text(render(), encoding="utf-8")
    for name, text in render_examples().items():
        (ROOT / "launch_scripts" / name).write_text(text, encoding="utf-8")
