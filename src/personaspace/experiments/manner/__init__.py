"""Whether the axis tells who speaks, or only how."""
