"""What programs on other hosts print."""

import json
from typing import Any

from bigft.launch.child import Answer


def read_answer(answer: Answer) -> Any:
    """Return the JSON of the last line; a host may greet everybody who logs in before it.

    None where it is no JSON.
    """
    last = answer.out.strip().rpartition("\n")[2]
    try:
        return json.loads(last)
    except json.JSONDecodeError:
        return None
