"""Where records come from: files, folders, ports, brokers, web addresses; all I/O is here."""

from collectors.readers.batch import Batch, Clock, Reader
from collectors.readers.files import FileReader
from collectors.readers.folder import FolderReader
from collectors.readers.syslog import SyslogTcp, SyslogUdp

__all__ = ["Batch", "Clock", "FileReader", "FolderReader", "Reader", "SyslogTcp", "SyslogUdp"]
