"""The public API: load an object, attach it to processes, read its maps."""

from userbpf.session.attachment import Attachment, Link
from userbpf.session.loaded import LoadedObject, load, read_object
from userbpf.session.trace import TraceLine

__all__ = ["Attachment", "Link", "LoadedObject", "TraceLine", "load", "read_object"]
