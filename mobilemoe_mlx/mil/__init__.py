"""An interpreter of saved MIL programs in numpy; it knows nothing of MobileMoE."""
