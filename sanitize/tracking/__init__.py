"""MLflow, and nothing but MLflow: finding suspects, recording runs, releasing what was cleaned."""

from sanitize.tracking.bindings import Binding, bind, binding_of
from sanitize.tracking.intake import register_data, register_model_file
from sanitize.tracking.links import deep_links, ui_command
from sanitize.tracking.release import Released, release, target_name
from sanitize.tracking.runs import RunRecorder, mark_interrupted
from sanitize.tracking.staging import Documents
from sanitize.tracking.store import ModelReference, Store
from sanitize.tracking.verify import verify

__all__ = [
    "Binding",
    "Documents",
    "ModelReference",
    "Released",
    "RunRecorder",
    "Store",
    "bind",
    "binding_of",
    "deep_links",
    "mark_interrupted",
    "register_data",
    "register_model_file",
    "release",
    "target_name",
    "ui_command",
    "verify",
]
