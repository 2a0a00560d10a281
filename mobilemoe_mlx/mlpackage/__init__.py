"""A saved .mlpackage of any kind of model: where its model file lies, and what its features are."""

import logging

# Off macOS coremltools warns at every import that it cannot run models; nothing here runs any. Each
# room that imports coremltools imports this one first.
logging.getLogger("coremltools").setLevel(logging.ERROR)
