"""Conversations that drifted, read as they were and given again (the paper's case studies)."""
