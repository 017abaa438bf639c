"""What the deepspeed launcher starts: `bigft train`, from any folder, installed or not.

deepspeed --num_gpus 8 launch_scripts/run.py --config ds_configs/zero3.json --model ...
"""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("bigft") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bigft.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
