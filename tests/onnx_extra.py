"""The packages of the extra `onnx`. A test file that imports this is skipped where they are not installed."""

from __future__ import annotations

from typing import Any

import pytest

_REASON = "the extra `onnx` is not installed: `pip install 'edgemoe[onnx]'`"
onnx: Any = pytest.importorskip("onnx", reason=_REASON)
onnxruntime: Any = pytest.importorskip("onnxruntime", reason=_REASON)
