"""The bundle: what it holds, how it is written, read and verified, and its report page."""

from bt_compiler.artifact.adapter_folder import adapter_digest, canonical_adapter
from bt_compiler.artifact.bundle import Bundle, read_bundle, verify_bundle, write_bundle
from bt_compiler.artifact.contents import (
    Ancestor,
    BundleContents,
    Difference,
    ModelFacts,
    Prefix,
    SplitFacts,
    StepFacts,
    Who,
    sent_prompts,
)
from bt_compiler.artifact.manifest import Manifest, check_base

__all__ = [
    "Ancestor",
    "Bundle",
    "BundleContents",
    "Difference",
    "Manifest",
    "ModelFacts",
    "Prefix",
    "SplitFacts",
    "StepFacts",
    "Who",
    "adapter_digest",
    "canonical_adapter",
    "check_base",
    "read_bundle",
    "sent_prompts",
    "verify_bundle",
    "write_bundle",
]
