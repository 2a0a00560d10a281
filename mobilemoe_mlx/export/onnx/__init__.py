"""ONNX folders of MobileMoE for ONNX Runtime and onnxruntime-genai, made from weights alone."""
