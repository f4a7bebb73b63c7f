"""The default engine, on `transformers`: a decode loop, replays, and readings before the first word."""
