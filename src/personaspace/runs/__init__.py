"""A run's folder on the disk: `folder` has its configuration, lock and scores, `shards` its replies and activations."""

from personaspace.runs.folder import FORMAT as FORMAT
from personaspace.runs.folder import ONSETS as ONSETS
from personaspace.runs.folder import Folder as Folder
from personaspace.runs.folder import KeptScore as KeptScore
from personaspace.runs.folder import Run as Run
from personaspace.runs.folder import differences as differences
from personaspace.runs.shards import SAME as SAME
from personaspace.runs.shards import SCHEMA as SCHEMA
from personaspace.runs.shards import Shards as Shards
