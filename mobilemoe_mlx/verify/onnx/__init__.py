"""The proof of ONNX exports: graph and weights read by onnx, computed by ONNX Runtime."""
