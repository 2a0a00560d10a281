"""Core ML's custom-layer form: the contract, its reference, golden files and the builder."""
