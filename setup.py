"""Metadata and dependencies. Lower bounds are the oldest versions tried, upper bounds the next one that may break."""

from setuptools import find_packages, setup

DATA = ["datasets>=4.0,<6", "reasoning-gym>=0.1.25,<0.2"]
PLOTS = ["matplotlib>=3.9,<4"]
DEV = [
    "accelerate>=1.10,<2",
    "gguf>=0.17,<1",
    "hypothesis>=6.140,<7",
    "pyright>=1.1.400,<1.2",
    "pytest>=8.4,<10",
    "pytest-xdist>=3.6,<4",
    "ruff>=0.14,<0.18",
    "reasoning-gym>=0.1.25,<0.2",
    "matplotlib>=3.9,<4",
]

setup(
    name="megatron-atesd",
    version="0.1.0",
    description="Adaptive Teacher Exposure for Self-Distillation of reasoning LLMs, on Megatron-Core",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=find_packages(include=["megatron_atesd", "megatron_atesd.*", "checkpoints_convert", "checkpoints_convert.*"]),
    install_requires=[
        "jsonargparse[signatures]>=4.49,<5",
        "megatron-core>=0.16.1,<0.17",
        "numpy>=2.0,<3",
        "packaging>=24,<27",
        "psutil>=6.0,<8",
        "pyyaml>=6.0,<7",
        "rich>=13.7,<16",
        "safetensors>=0.6,<1",
        "sentencepiece>=0.2,<1",
        "sympy>=1.13.3,<2",
        "tensorboard>=2.18,<3",
        "tokenizers>=0.22,<1",
        "torch>=2.13,<3",
        "transformers>=5.16,<6",
    ],
    extras_require={
        "gpu": ["transformer-engine[pytorch,core_cu13]>=2.20,<3"],
        "data": DATA,
        "plots": PLOTS,
        "dev": DEV,
    },
)
