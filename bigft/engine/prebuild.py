"""Build DeepSpeed's host operators, and ours, once: `python -m bigft.engine.prebuild [BUILDER...]`.

DeepSpeed's take a minute or two each; afterwards they come from the cache (TORCH_EXTENSIONS_DIR,
default ~/.cache/torch_extensions).
"""

import sys

from bigft.distributed.world import close_world, open_world
from bigft.engine.operators import HOST_OPERATORS, build_operators, check_build_tools
from bigft.errors import BigftError
from bigft.optim.native.binding import load_native


def main() -> None:
    """Check the tools, then build."""
    operators = sys.argv[1:] or HOST_OPERATORS
    # Opening the world puts the interpreter's folder, where ninja is, on PATH.
    open_world()
    try:
        check_build_tools(operators)
        build_operators(operators)
        load_native()
    except BigftError as error:
        sys.stderr.write(f"bigft: {error}\n")
        raise SystemExit(error.exit_code) from None
    finally:
        close_world()


if __name__ == "__main__":
    main()
