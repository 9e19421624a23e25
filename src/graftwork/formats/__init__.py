"""Formats of other libraries: adapters and models in and out, strictly."""

from graftwork.formats._peft_export import ExportOptions as ExportOptions
from graftwork.formats._peft_export import export_peft as export_peft
from graftwork.formats._peft_import import ImportOptions as ImportOptions
from graftwork.formats._peft_import import import_peft as import_peft

__all__ = ["ExportOptions", "ImportOptions", "export_peft", "import_peft"]
