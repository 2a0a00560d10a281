"""Core ML packages of MobileMoE: the MIL program, its MoE op, the custom-layer form, the files."""

import logging

# Off macOS coremltools warns at every import that it cannot run models; nothing here runs any.
logging.getLogger("coremltools").setLevel(logging.ERROR)
