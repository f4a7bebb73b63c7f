"""What is shown to people: a page, its charts, the map's report, and figures in words."""
