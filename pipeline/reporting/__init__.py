"""The parts of the report: its images, its scores, its page."""
