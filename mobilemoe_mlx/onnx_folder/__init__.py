"""What a folder that `mobilemoe export onnx` wrote is, for whoever writes, runs or proves one."""
