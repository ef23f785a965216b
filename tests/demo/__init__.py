"""The demo: its own small data set, rendered as real video files."""
