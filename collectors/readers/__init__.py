"""Where records come from: files, folders, syslog. All input and output is here."""

from collectors.readers.batch import Batch, Clock, Reader

__all__ = ["Batch", "Clock", "Reader"]
