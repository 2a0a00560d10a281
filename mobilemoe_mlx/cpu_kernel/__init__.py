"""The CPU kernel of coreml/kernel in Python: its C interface, and objects that own its handles.

The library is compiled when the package is installed (hatch_build.py) and lies in this folder.
"""
