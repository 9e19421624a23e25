"""Formats of other libraries: adapters and models in and out, strictly."""

from graftwork.formats._adapterhub import import_adapterhub as import_adapterhub
from graftwork.formats._card import model_card as model_card
from graftwork.formats._hub import PushOptions as PushOptions
from graftwork.formats._hub import pull as pull
from graftwork.formats._hub import pull_delta as pull_delta
from graftwork.formats._hub import push as push
from graftwork.formats._loralib import LoralibOptions as LoralibOptions
from graftwork.formats._loralib import import_loralib as import_loralib
from graftwork.formats._merged import Merged as Merged
from graftwork.formats._merged import export_merged as export_merged
from graftwork.formats._peft_export import ExportOptions as ExportOptions
from graftwork.formats._peft_export import export_peft as export_peft
from graftwork.formats._peft_import import ImportOptions as ImportOptions
from graftwork.formats._peft_import import import_peft as import_peft

__all__ = [
    "ExportOptions",
    "ImportOptions",
    "LoralibOptions",
    "Merged",
    "PushOptions",
    "export_merged",
    "export_peft",
    "import_adapterhub",
    "import_loralib",
    "import_peft",
    "model_card",
    "pull",
    "pull_delta",
    "push",
]
