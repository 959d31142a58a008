"""The bundle: what it holds, how it is written, read and verified, and its report page."""

from bt_compiler.artifact.adapter_folder import adapter_digest, canonical_adapter
from bt_compiler.artifact.contents import (
    Ancestor,
    BundleContents,
    Difference,
    ModelFacts,
    Prefix,
    SplitFacts,
    StepFacts,
    sent_prompts,
)

__all__ = [
    "Ancestor",
    "BundleContents",
    "Difference",
    "ModelFacts",
    "Prefix",
    "SplitFacts",
    "StepFacts",
    "adapter_digest",
    "canonical_adapter",
    "sent_prompts",
]
