"""Exports of `edgemoe convert --to onnx` under a budget: ONNX Runtime computes, we say which experts are in memory."""
