"""Package metadata. Tools are configured in pyproject.toml; tested versions in constraints.txt."""

import re
import runpy
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "bigft/__init__.py").read_text())[1]

# rouge-score has had one release since 2019; sacrebleu's signatures name its version.
EVAL = ["sacrebleu>=2.4", "rouge-score>=0.1.2"]

# What vLLM reads and transformers loads; it follows transformers' own releases closely.
COMPRESS = ["compressed-tensors>=0.20"]

# Its models of transformers need accelerate.
HARNESS = ["lm-eval>=0.4.13", "accelerate>=1.10"]

GGUF = ["gguf>=0.17", "accelerate>=1.10"]  # transformers loads GGUF with both

TEST = [
    *EVAL,
    *COMPRESS,
    *HARNESS,
    *GGUF,
    "pytest>=8",
    "pytest-timeout",
    "hypothesis",
    "import-linter>=2",
    "ruff",
    "mypy",
    "types-PyYAML",
    "sentencepiece",  # What llama.cpp's converter imports, where its sources are there.
    "optuna>=4",  # bigft sweep
]

NATIVE = ROOT / "bigft/optim/native"


class BuildWithNative(build_py):
    """Adds the native optimizer step where there is a compiler; else the first run builds it."""

    def run(self):
        """Copy the modules, then compile beside them; not into a source tree."""
        super().run()
        if self.editable_mode:
            return
        code = runpy.run_path(str(NATIVE / "build.py"))
        folder = Path(self.build_lib) / "bigft/optim/native"
        try:
            code["build"](folder / f"{code['digest_sources']()}-{code['NAME']}")
        except code["BuildError"] as error:
            sys.stderr.write(f"the native optimizer step is left to the first run: {error}\n")


class NativeDistribution(Distribution):
    """Makes the wheel one of this platform."""

    def has_ext_modules(self):
        """Say that there is machine code in it."""
        return True


setup(
    name="bigft",
    cmdclass={"build_py": BuildWithNative},
    distclass=NativeDistribution,
    package_data={"bigft.optim.native": ["csrc/*"]},
    data_files=[  # bigft selftest runs them
        ("share/bigft/ds_configs", [f"ds_configs/{p.name}" for p in ROOT.glob("ds_configs/*.json")])
    ],
    version=VERSION,
    description="Full-parameter fine-tuning of large Hugging Face models on hardware people own",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["bigft", "bigft.*"]),
    install_requires=[
        "torch>=2.10",  # CVE-2026-24747: memory corruption in its weights_only unpickler before
        "deepspeed>=0.19.8",
        "transformers>=5.17",
        "datasets>=4",
        "bitsandbytes>=0.50",
        "tensorboard>=2.19",
        "fire>=0.7",
        "safetensors>=0.5",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "pydantic>=2.7",
        "PyYAML>=6",
        "tqdm>=4.60",
        "ninja",
    ],
    extras_require={
        "test": TEST,
        "docs": ["sphinx>=8", "myst-parser>=4", "furo"],
        "eval": EVAL,
        "compress": COMPRESS,
        "gguf": GGUF,
        "harness": HARNESS,
        "gpu": ["nvidia-ml-py"],
        "bench": ["accelerate>=1.10"],
        "sweep": ["optuna>=4"],
        "wandb": ["wandb"],
        "mlflow": ["mlflow-skinny"],
        "dev": [*TEST, "pre-commit", "codespell"],
    },
    entry_points={"console_scripts": ["bigft = bigft.cli:main"]},
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
