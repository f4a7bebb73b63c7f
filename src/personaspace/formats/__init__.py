"""Other people's formats, in and out; reads and writes the disk, and the Hub where a space is pushed
or the study's files are fetched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from personaspace._lazy import lazy_names

if TYPE_CHECKING:
    from personaspace.formats.gguf import read_control_vector as read_control_vector
    from personaspace.formats.gguf import write_control_vector as write_control_vector
    from personaspace.formats.hub import fetch_reference as fetch_reference
    from personaspace.formats.hub import push as push
    from personaspace.formats.reference import read_capping as read_capping
    from personaspace.formats.reference import read_reference as read_reference
    from personaspace.formats.reference import write_capping as write_capping
    from personaspace.formats.reference import write_reference as write_reference
    from personaspace.formats.spaces import FORMATS as FORMATS
    from personaspace.formats.spaces import export_space as export_space
    from personaspace.formats.spaces import import_space as import_space
    from personaspace.formats.spaces import unknown as unknown
    from personaspace.formats.transcripts import Transcript as Transcript
    from personaspace.formats.transcripts import read_transcripts as read_transcripts
    from personaspace.formats.vectors import read_vectors as read_vectors
    from personaspace.formats.weights import export_weights as export_weights

NAMES = {
    "FORMATS": "personaspace.formats.spaces",
    "export_space": "personaspace.formats.spaces",
    "export_weights": "personaspace.formats.weights",
    "fetch_reference": "personaspace.formats.hub",
    "import_space": "personaspace.formats.spaces",
    "push": "personaspace.formats.hub",
    "read_capping": "personaspace.formats.reference",
    "read_control_vector": "personaspace.formats.gguf",
    "read_reference": "personaspace.formats.reference",
    "unknown": "personaspace.formats.spaces",
    "write_capping": "personaspace.formats.reference",
    "write_control_vector": "personaspace.formats.gguf",
    "write_reference": "personaspace.formats.reference",
    "Transcript": "personaspace.formats.transcripts",
    "read_transcripts": "personaspace.formats.transcripts",
    "read_vectors": "personaspace.formats.vectors",
}
__all__ = list(NAMES)
__getattr__, __dir__ = lazy_names(__name__, NAMES)
