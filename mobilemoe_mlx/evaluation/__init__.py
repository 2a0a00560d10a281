"""Benchmark scores: the tasks of lm-evaluation-harness on any checkpoint and engine.

    results = evaluate("facebook/MobileMoE-S-QAT", suite="quick", folder="runs/eval-s")

Needs the extra `eval`. See docs/evaluation.md.
"""
