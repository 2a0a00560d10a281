"""Names of tensors in the published packed layout, and the modules that they belong to."""

from __future__ import annotations


def split_int4_name(name: str) -> tuple[str, str, str] | None:
    """A published packed tensor's (module path, "qweight" or "scale", name of its scale tensor).

    None when `name` is not of the packed layout. Experts: `experts.gate_up_qweight` belongs to the
    module `experts.gate_up_proj`; all others: `X.qweight` with `X.weight_scale`.
    """
    head, _, leaf = name.rpartition(".")
    for stem in ("gate_up", "down"):
        if leaf in (f"{stem}_qweight", f"{stem}_scale"):
            kind = leaf.removeprefix(f"{stem}_")
            return f"{head}.{stem}_proj", kind, f"{head}.{stem}_scale"
    if leaf in ("qweight", "weight_scale"):
        return head, "qweight" if leaf == "qweight" else "scale", f"{head}.weight_scale"
    return None


def packed_names(parameter: str) -> tuple[str, str]:
    """The published names of a parameter's codes and scales: the inverse of `split_int4_name`."""
    module = parameter.removesuffix(".weight")
    if is_expert_matrix(module):
        stem = module.removesuffix("_proj")
        return f"{stem}_qweight", f"{stem}_scale"
    return f"{module}.qweight", f"{module}.weight_scale"


def mlx_parts(name: str) -> dict[str, str]:
    """What a published tensor becomes in `Model`: parameter's name -> "same", "codes" or "biases".

    Experts of the BF16 layout gain `.weight`; packed codes become `.weight`, and their scales both
    `.scales` and `.biases`. A name of `Model`'s own stays.
    """
    if is_expert_matrix(name):
        return {f"{name}.weight": "same"}
    if (split := split_int4_name(name)) is None:
        return {name: "same"}
    module, kind, _ = split
    if kind == "qweight":
        return {f"{module}.weight": "codes"}
    return {f"{module}.scales": "same", f"{module}.biases": "biases"}


def is_always_float32(name: str) -> bool:
    """True for the router's parameters, which compute in float32 whatever the type of the rest."""
    return name.endswith(("router.weight", "expert_bias"))


def is_expert_matrix(module: str) -> bool:
    """True for the path of a matrix that holds all routed experts."""
    return module.endswith((".experts.gate_up_proj", ".experts.down_proj"))
