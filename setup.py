"""The package: its name, what it needs, what travels in it. Settings of the tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "srnas_fast" / "__init__.py").read_text("utf-8"), re.M)

# Ranges, so that the library fits into other people's environments; constraints.txt pins what was tested.
REQUIRES = [
    "jsonargparse[signatures]>=4.40",
    "lightning-fabric>=2.4",
    "matplotlib>=3.8",
    "ninja>=1.11",
    "numpy>=1.26",
    "pillow>=10.1",
    "pybind11>=2.12",
    "pyyaml>=6.0",
    "rich>=13.7",
    "safetensors>=0.4",
    "scikit-image>=0.23",
    "setuptools>=70",  # torch.utils.cpp_extension imports it
    "tensorboard>=2.16",
    "tifffile>=2023.8",
    "torch>=2.6",
    # The only platforms with wheels; elsewhere the Triton backend is missing and `srnas-fast doctor` says so.
    "triton>=3.2; platform_system == 'Linux' and platform_machine in 'x86_64 aarch64'",
]
# What `srnas-fast export RUN model.onnx` needs.
ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
# What .ci/run runs: tests, packaging tests (without build isolation), formatters and linters.
TEST = [
    *ONNX,
    "build>=1.2",
    "clang-format>=18",
    "entmax>=1.1",  # the sparsemax that ours is held to
    "hypothesis>=6.100",
    "import-linter>=2.1",
    # CUDA 12's compiler as a library, the last one that knows the GTX 1080 Ti: programs are compiled for it, not run.
    "nvidia-cuda-nvrtc-cu12>=12.6; platform_system == 'Linux' and platform_machine == 'x86_64'",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=77",
]

setup(
    name="srnas-fast",
    version=VERSION[1],
    description="Differentiable architecture search for image restoration that fits on one small GPU",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # srnas_fast/kernels and srnas_fast/csrc are relative links to the folders beside srnas_fast, followed by
    # find_packages and package_data: wheel, sdist, editable install and source tree hold the same files.
    packages=find_packages(include=["srnas_fast", "srnas_fast.*"]),
    package_data={"srnas_fast": ["csrc/**"], "srnas_fast.kernels": ["*.md"]},
    install_requires=REQUIRES,
    extras_require={"onnx": ONNX, "test": TEST, "dev": TEST},  # what CI checks is what a developer runs
    entry_points={"console_scripts": ["srnas-fast = srnas_fast.cli:main"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
