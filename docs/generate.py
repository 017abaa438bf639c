"""Write the generated pages: `python docs/generate.py`."""

from pathlib import Path

from bigft.run.reference import render_reference

PAGES = {"reference/settings.md": render_reference}

if __name__ == "__main__":
    for name, render in PAGES.items():
        (Path(__file__).parent / name).write_text(render(), encoding="utf-8")
