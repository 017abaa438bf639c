import re
from pathlib import Path

import yaml

from bigft.data.clean.section import AugmentSection, CleanSection
from bigft.data.section import DataSection

GUIDE = Path(__file__).resolve().parents[4] / "docs/guides/data.md"


def test_the_recipe_of_the_guide_is_accepted_and_shows_every_setting() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    block = re.search(r"(?m)^    data:\n(?:    .*\n)+", text)
    assert block
    section = DataSection.model_validate(yaml.safe_load(block[0])["data"])
    assert section.clean.model_fields_set == set(CleanSection.model_fields)
    assert section.clean.augment.model_fields_set == set(AugmentSection.model_fields)
