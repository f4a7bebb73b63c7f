"""The statistics of persona space: arithmetic on arrays, with intervals; no file here knows of models, files or pages."""
