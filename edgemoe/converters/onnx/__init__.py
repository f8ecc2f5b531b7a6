"""Checkpoints and GGUF to ONNX: a folder for stock ONNX Runtime, with a bitwidth for each expert (docs/onnx.md)."""
