"""What leaves the tool: weights without pickle, and ONNX. Modules are imported one by one: ONNX is slow to import."""
