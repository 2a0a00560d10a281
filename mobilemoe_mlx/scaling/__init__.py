"""The scaling law: what loss a size will reach, which size to build, and how a law is fitted."""
