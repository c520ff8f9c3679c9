"""The public API: load an object, attach it to processes, read its maps."""

from userbpf.session.attachment import Attachment, Link
from userbpf.session.loaded import LoadedObject, kernel_btf, load, read_object
from userbpf.session.trace import TraceLine

__all__ = ["Attachment", "Link", "LoadedObject", "TraceLine", "kernel_btf", "load", "read_object"]
